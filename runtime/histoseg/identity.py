"""Which run a result is of: what its bytes depend on, so that one that is there already is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import histoseg
from histoseg.card import card_to_text
from histoseg.folder import REPORT_NAME
from histoseg.slide import FileSlide

if TYPE_CHECKING:
    from histoseg.options import RunOptions
    from histoseg.session import Session
    from histoseg.slide import Slide

# they change when a result is there, not what it is
_NOT_OF_THE_RESULT = ("readers",)

_WORDS = {
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
        "histoseg": histoseg.__version__,
        "model": session.sha256,
        "card": card,
        "provider": session.provider,
        **files,
        **chosen,
    }
    same: dict[str, Any] = json.loads(json.dumps(run))
    return same


def name_part(name: str) -> str:
    """Return a name of what a run depends on in words; the others are options."""
    return _WORDS.get(name, f"option {name}")


def find_finished(folder: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the report of a folder that holds the whole result of a run; `None` where it does not."""
    report = read_report(folder)
    if report is None or report["run"] != run:
        return None
    files = report.get("files")
    whole = isinstance(files, dict) and all((folder / name).is_file() for name in files)
    return report if whole else None


def read_report(folder: Path) -> dict[str, Any] | None:
    """Return the report of a folder of results; `None` where there is none, or of a run nobody can tell."""
    try:
        report = json.loads((folder / REPORT_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and isinstance(report.get("run"), dict) else None


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder whose name does not begin with a dot."""
    hashes = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as file:
                hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _stamp_slide(path: Path) -> list[Any]:
    """Return the stamps of a slide's file, and of the folder beside it where MIRAX keeps the pixels."""
    beside = path.with_suffix("")
    inside = sorted(beside.rglob("*")) if path.suffix and beside.is_dir() else []
    return [_stamp(path), *([file.name, _stamp(file)] for file in inside if file.is_file())]


def _stamp(path: str | Path | None) -> list[int] | None:
    if path is None:
        return None
    found = Path(path).stat()
    return [found.st_size, found.st_mtime_ns]
