"""DICOM slides: a series of files, of which OpenSlide opens one and finds the others beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from histoseg.dicomseries import SUFFIXES, read_series
from histoseg.errors import SlideError
from histoseg.identity import read_report


def list_series(folder: Path) -> list[Path]:
    """Return the files of a folder's DICOM series; none where it holds no series, several, or a result."""
    files = [path for path in list_visible(folder) if path.suffix.lower() in SUFFIXES and path.is_file()]
    dicom = [path for path in files if detect_format(path) == "dicom"]
    if not dicom or is_result(folder):
        return []
    return dicom if len(join_series(dicom)) == 1 else []


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


def is_result(folder: Path) -> bool:
    """Return whether a folder is one that a run has written."""
    return "histoseg" in (read_report(folder) or {})
