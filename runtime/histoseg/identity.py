"""Which run a result is of: what its bytes depend on, so that one that is there already is known again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import histoseg
from histoseg.card import card_to_text
from histoseg.dicomseries import find_siblings
from histoseg.folder import REPORT_NAME
from histoseg.journal import ORDER, name_changes
from histoseg.slide import FileSlide

if TYPE_CHECKING:
    from histoseg.options import RunOptions
    from histoseg.session import Session
    from histoseg.slide import Slide

# they change how a run goes, not what it gives
_NOT_OF_THE_RESULT = ("readers", "max_memory")
_WORDS = {
    "onnxruntime": "onnxruntime's version",
    "name": "the slide's name",
    "histoseg": "histoseg's version",
    "model": "the model",
    "card": "the model's card",
    "provider": "the provider",
    "slide": "the slide",
    "truth": "the truth",
    "roi": "the region of interest",
}


def identify_run(
    slide: str | Path | Slide,
    session: Session,
    options: RunOptions,
    *,
    truth: str | Path | None = None,
    roi: str | Path | None = None,
    order: str | None = None,
) -> dict[str, Any] | None:
    """Return what the bytes of a result depend on, by name, as JSON values.

    Files are known by size and time of change, as `make` and `rsync` do: reading a slide whole takes longer
    than many a run.

    Args:
        slide: A file, or an open slide.
        session: The model.
        options: As a person gave them.
        truth: What the run is scored against.
        roi: Where it runs.
        order: Names an order to run everything afresh, once.

    Returns:
        `None` for a slide that is no file, or cannot be looked at.
    """
    path = slide.path if isinstance(slide, FileSlide) else slide
    if not isinstance(path, str | Path):
        return None
    try:
        files = {"slide": _stamp_slide(Path(path)), "truth": _stamp(truth), "roi": _stamp(roi)}
    except OSError:
        return None  # whoever opens it says so
    chosen = {name: value for name, value in asdict(options).items() if name not in _NOT_OF_THE_RESULT}
    card = hashlib.sha256(card_to_text(session.card).encode()).hexdigest()
    run = {
        "name": slide.name if isinstance(slide, FileSlide) else Path(path).stem,
        ORDER: order,
        "histoseg": histoseg.__version__,
        "model": session.sha256,
        "card": card,
        "provider": session.provider,
        **files,
        **chosen,
    }
    same: dict[str, Any] = json.loads(json.dumps(run))
    return same


def name_parts(names: Iterable[str]) -> str:
    """Return names of what a run depends on in words; the others are options."""
    return ", ".join(_WORDS.get(name, f"option {name}") for name in names)


def find_finished(folder: Path, run: Mapping[str, Any], *, verify: bool = False) -> dict[str, Any] | None:
    """Return the report of a folder that holds the whole result of a run; `None` where it does not.

    Args:
        folder: Where it would be.
        run: See `identify_run`.
        verify: Whether to compare what the files hold with what the report says.
    """
    report = read_report(folder)
    if report is None or name_changes(report["run"], run):
        return None
    files = report.get("files")
    if not isinstance(files, dict) or not all((folder / name).is_file() for name in files):
        return None
    return report if not verify or {**files} == hash_files(folder, files) else None


def read_report(folder: Path) -> dict[str, Any] | None:
    """Return the report of a folder of results; `None` where there is none, or of a run nobody can tell."""
    try:
        report = json.loads((folder / REPORT_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and isinstance(report.get("run"), dict) else None


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of files in a folder."""
    hashes = {}
    for name in names:
        with (folder / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _stamp_slide(path: Path) -> list[Any]:
    """Return a stamp of all files that hold a slide."""
    stamps = [[file.name, _stamp(file)] for file in _list_files(path)]
    return [_stamp(path), len(stamps), hashlib.sha256(json.dumps(stamps).encode()).hexdigest()]


def _list_files(path: Path) -> list[Path]:
    """Return the files of a slide: most have one."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":  # MIRAX
        return [path, *sorted(file for file in path.with_suffix("").rglob("*") if file.is_file())]
    if suffix in (".vms", ".vmu"):  # Hamamatsu: the index names its pictures
        words = re.findall(r"=\s*(\S[^\r\n]*)", path.read_text(encoding="latin-1"))
        return [path, *(file for word in words if (file := path.with_name(word.strip())).is_file())]
    return find_siblings(path)


def _stamp(path: str | Path | None) -> list[int] | None:
    if path is None:
        return None
    found = Path(path).stat()
    return [found.st_size, found.st_mtime_ns]
