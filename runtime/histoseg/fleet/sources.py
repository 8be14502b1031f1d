"""What the arguments of a run name: files, folders, patterns and lists, as slides."""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from histoseg.errors import OptionError, SlideError
from histoseg.fleet.series import (
    DOUBTFUL_SUFFIXES,
    SLIDE_SUFFIXES,
    detect_format,
    join_series,
    list_series,
    list_slides,
    list_visible,
)
from histoseg.folder import is_result

# Lists, and what parts their columns.
LIST_SUFFIXES = {".csv": ",", ".txt": "\t"}
TRUTH_SUFFIXES = (
    ".geojson", ".geojson.gz", ".jpeg", ".jpg", ".json", ".json.gz", ".png", ".tif", ".tiff", ".xml"
)  # fmt: skip


@dataclass(frozen=True)
class SlideSource:
    """One slide to run."""

    path: Path
    """As it was given, or found."""
    name: str
    """Of the folder of its results."""
    truth: Path | None = None


@dataclass(frozen=True)
class Sources:
    """What arguments name."""

    slides: tuple[SlideSource, ...]
    passed_over: tuple[str, ...] = ()
    """One line for each file of a folder that may have been meant as a slide, and is none, and for each
    folder in it that holds slides and is not looked into."""


def find_slides(arguments: Sequence[str], *, truth: Path | None = None) -> Sources:
    """Return the slides that files, folders, patterns and lists name, in order and once each.

    Of a folder come the slides that lie directly in it, and each folder in it that holds a DICOM series, as
    one slide; results of this package never. A list is a `.txt` or `.csv` file; see `read_list`.

    Args:
        arguments: As they stand on a command line.
        truth: The truth of the only slide; or a folder in which each slide's has the slide's name.

    Raises:
        OptionError: There is no argument, two slides would write to the same folder, or truths do not pair.
        SlideError: A folder, a pattern or a list holds no slide, or a list cannot be read.
    """
    if not arguments:
        raise OptionError("no slide given, expected at least one SLIDE (or --demo)")
    found = [_expand(argument) for argument in arguments]
    first: dict[Path, SlideSource] = {}
    for slide in (slide for sources in found for slide in sources.slides):
        first.setdefault(slide.path, slide)
    slides = list(first.values())
    refuse_clashes((slide.path, slide.name) for slide in slides)
    if truth is not None:
        slides = pair_truths(slides, truth)
    return Sources(tuple(slides), tuple(line for sources in found for line in sources.passed_over))


def expand_paths(arguments: Sequence[str]) -> list[Path]:
    """Return the files that paths and patterns name, in order and once each, whatever they hold.

    Raises:
        OptionError: There is none, or two have the same name but for the suffix.
        SlideError: A pattern matches nothing.
    """
    if not arguments:
        raise OptionError("no slide given, expected at least one SLIDE (or --demo)")
    found = dict.fromkeys(path for argument in arguments for path in _match(argument))
    refuse_clashes((path, path.stem) for path in found)
    return list(found)


def refuse_clashes(named: Iterable[tuple[Path, str]]) -> None:
    """Refuse slides whose results would lie in the same folder.

    Raises:
        OptionError: The message names two of them.
    """
    seen: dict[str, Path] = {}
    for path, name in named:
        if name in seen:
            raise OptionError(
                f"{seen[name]} and {path} would both write to the folder '{name}'; run them with different -o"
            )
        seen[name] = path


def pair_truths(slides: Sequence[SlideSource], truth: Path) -> list[SlideSource]:
    """Return the slides with their truths; what a list has paired stays.

    Raises:
        OptionError: A file is given for several slides, or nothing is there, or a folder holds none for a
            slide, or two.
    """
    if not truth.is_dir():
        if len(slides) > 1:
            if not truth.exists():
                raise OptionError(
                    f"--truth {truth}: no such file or folder, expected a folder of truths that are named "
                    "like the slides"
                )
            raise OptionError(
                f"--truth is the truth of one slide, but there are {len(slides)}; give a folder of truths "
                "that are named like the slides, or a list with a second column"
            )
        return [replace(slide, truth=slide.truth or truth) for slide in slides]
    paired = [slide if slide.truth else replace(slide, truth=_find_truth(slide, truth)) for slide in slides]
    missing = [slide.name for slide in paired if slide.truth is None]
    if missing:
        raise OptionError(
            f"--truth {truth} holds none for {_count_names(missing)}, expected a mask or annotations for "
            f"each slide, such as {missing[0]}.png; add them, or leave these slides out"
        )
    return paired


def read_list(path: Path) -> list[SlideSource]:
    """Return the slides of a list: one a line, with its truth in a second column, if it has one.

    Columns are parted by commas (`.csv`, quoted where a name holds one) or tabs (`.txt`). Paths are relative
    to the list's folder; a `#` begins a comment line; a first line `slide` or `slide,truth` is a heading.

    Raises:
        SlideError: It cannot be read, a line has more columns, or there is no slide.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        slides = [_read_line(path, cells) for cells in _iter_lines(path, text)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        if isinstance(error, SlideError):
            raise
        raise SlideError(
            f"{path}: cannot be read as a list of slides ({error}), expected UTF-8 text"
        ) from error
    if not slides:
        raise SlideError(f"{path}: lists no slide, expected at least one path, one a line")
    return slides


def _iter_lines(path: Path, text: str) -> Iterator[list[str]]:
    """Yield the cells of each line that names a slide."""
    rows, first = csv.reader(io.StringIO(text), delimiter=LIST_SUFFIXES[path.suffix.lower()]), True
    for row in rows:
        cells = [cell.strip() for cell in row]
        if not cells or not cells[0] or cells[0].startswith("#"):
            continue
        if len(cells) > 2:
            raise SlideError(
                f"{path}: line {rows.line_num} has {len(cells)} columns, expected a slide, or a slide and "
                "its truth"
            )
        if not (first and cells[0].lower() == "slide"):
            yield cells
        first = False


def _read_line(path: Path, cells: list[str]) -> SlideSource:
    slide, *truth = cells
    place = path.parent / slide
    named = _name_series(place) if place.is_dir() else SlideSource(place, place.stem)
    return replace(named, truth=path.parent / truth[0]) if truth and truth[0] else named


def _expand(argument: str) -> Sources:
    path = Path(argument)
    if path.is_dir():
        return list_folder(path)
    if path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        return Sources(tuple(read_list(path)))
    if path.exists() or not glob.has_magic(argument):
        return Sources((SlideSource(path, path.stem),))
    matches = _match(argument)
    series = [_name_series(match) for match in matches if match.is_dir() and list_series(match)]
    results = {parent for parent in {match.parent for match in matches} if is_result(parent)}
    files = [match for match in matches if not match.is_dir() and match.parent not in results]
    slides = [SlideSource(file, file.stem) for file in join_series(files)]
    if not slides and not series:
        raise SlideError(f"no slide matches '{argument}', expected at least one")
    return Sources(tuple(sorted([*slides, *series], key=lambda slide: slide.path)))


def _match(argument: str) -> list[Path]:
    if Path(argument).exists() or not glob.has_magic(argument):
        return [Path(argument)]
    matches = sorted(glob.glob(argument, recursive=True))
    if not matches:
        raise SlideError(f"no file matches '{argument}', expected at least one slide")
    return [Path(match) for match in matches]


def list_folder(folder: Path) -> Sources:
    """Return the slides of a folder; see `find_slides`.

    Raises:
        SlideError: It holds none, or cannot be read.
    """
    slides: list[SlideSource] = []
    passed_over: list[str] = []
    dicom: list[Path] = []
    for path in list_visible(folder):
        if path.is_dir():
            inside = _look_inside(folder, path)
            slides += inside.slides
            passed_over += inside.passed_over
        elif (kind := detect_format(path)) == "dicom":
            dicom.append(path)
        elif kind is not None or path.suffix.lower() in SLIDE_SUFFIXES:
            slides.append(SlideSource(path, path.stem))
        elif path.suffix.lower() in DOUBTFUL_SUFFIXES:
            passed_over.append(f"{path}: passed over, it is no slide that OpenSlide knows")
    series = join_series(dicom)
    if len(series) == 1 < len(dicom) and not slides:
        slides = [SlideSource(series[0], folder.resolve().name)]
    else:
        slides += [SlideSource(path, path.stem) for path in series]
    if not slides:
        raise SlideError(
            f"{folder}: holds no slide that OpenSlide reads, expected at least one; name folders inside it "
            f"by a pattern, such as '{folder}/**/*.svs'"
        )
    return Sources(tuple(sorted(slides, key=lambda slide: slide.path)), tuple(passed_over))


def _look_inside(folder: Path, inner: Path) -> Sources:
    """Return the slide that a folder inside a folder is, or a line about its slides, which do not run."""
    if list_series(inner):
        return Sources((_name_series(inner),))
    slides = join_series(list_slides(inner))
    if not slides:
        return Sources(())
    what = "1 slide inside is" if len(slides) == 1 else f"{len(slides)} slides inside are"
    advice = f"name the folder, or use '{folder}/**/*{slides[0].suffix}'"
    return Sources((), (f"{inner}: {what} not looked into; {advice}",))


def _name_series(folder: Path) -> SlideSource:
    """Return a folder as the one slide whose files it holds."""
    files = list_series(folder)
    return SlideSource(files[0] if files else folder, folder.resolve().name)


def _find_truth(slide: SlideSource, folder: Path) -> Path | None:
    found = [
        path for path in (folder / f"{slide.name}{suffix}" for suffix in TRUTH_SUFFIXES) if path.is_file()
    ]
    if len(found) > 1:
        raise OptionError(
            f"--truth {folder} holds {found[0].name} and {found[1].name}, expected one truth for the slide "
            f"'{slide.name}'; move one away"
        )
    return found[0] if found else None


def _count_names(names: Sequence[str], most: int = 5) -> str:
    """Return some names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
