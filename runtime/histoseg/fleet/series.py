"""DICOM slides: a series of files, of which OpenSlide opens one and finds the others beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from histoseg.errors import SlideError
from histoseg.identity import read_report

# A DICOM file tells its series at its beginning; pixels, profiles and the places of tiles come later.
HEAD_BYTES = 1 << 16
SUFFIXES = (".dcm", "")
# The UIDs of a study and of its series: elements are in order, so that nothing comes in between; what refers
# to other series holds no such pair. DICOM PS3.5, 7.1.2 (explicit VR, little endian).
SERIES = re.compile(rb"\x20\0\x0d\0UI..[0-9.]+\0?\x20\0\x0e\0UI..([0-9.]+)", re.DOTALL)


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


def read_series(path: Path) -> str | None:
    """Return the UID of a file's DICOM series; `None` where its first bytes tell none."""
    if path.suffix.lower() not in SUFFIXES:
        return None
    try:
        with path.open("rb") as file:
            found = SERIES.search(file.read(HEAD_BYTES))
    except OSError:
        return None
    return found[1].decode() if found else None


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
