"""DICOM slides: a series of files, of which OpenSlide opens one and finds the others beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from histoseg.dicomseries import read_series
from histoseg.errors import SlideError
from histoseg.folder import is_result

# What only slides are called: a file of such a name that OpenSlide does not know is a slide that is damaged.
SLIDE_SUFFIXES = frozenset({".bif", ".czi", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".vms", ".vmu"})
# What slides are called, and masks, too.
DOUBTFUL_SUFFIXES = frozenset({".dcm", ".tif", ".tiff"})


def list_series(folder: Path) -> list[Path]:
    """Return the files of a folder's DICOM series; none where there are several, or other slides."""
    files = list_slides(folder)
    alone = len(join_series(files)) == 1 and all(detect_format(path) == "dicom" for path in files)
    return files if alone else []


def list_slides(folder: Path) -> list[Path]:
    """Return the slides that lie directly in a folder, every file of a DICOM series; none of a result.

    Other files than those that slides are called are not opened: there may be thousands of pictures.
    """
    if is_result(folder):
        return []
    return [path for path in list_visible(folder) if path.is_file() and _is_slide(path)]


def _is_slide(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in SLIDE_SUFFIXES:
        return True
    return suffix in DOUBTFUL_SUFFIXES | {""} and detect_format(path) is not None


def list_visible(folder: Path) -> list[Path]:
    """Return what lies in a folder, in order, but for what begins with a dot.

    Raises:
        SlideError: The folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise SlideError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error


def join_series(paths: Iterable[Path]) -> list[Path]:
    """Return files with one, the first, of each DICOM series: OpenSlide finds the others beside it."""
    kept: dict[object, Path] = {}
    for path in paths:
        uid = read_series(path)
        kept.setdefault(path if uid is None else (path.parent, uid), path)
    return list(kept.values())


def detect_format(path: Path) -> str | None:
    """Return what OpenSlide calls a file's format; `None` for what it does not know.

    Raises:
        SlideError: OpenSlide cannot be loaded.
    """
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise SlideError(
            f"OpenSlide cannot be loaded ({error}); "
            "repair with: pip install --force-reinstall openslide-python openslide-bin"
        ) from error
    vendor = openslide.OpenSlide.detect_format(path)
    return None if vendor is None else str(vendor)
