"""Which files of a folder are one DICOM slide: those of one series."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

# A DICOM file tells its series at its beginning; pixels, profiles and the places of tiles come later.
HEAD_BYTES = 1 << 16
SUFFIXES = (".dcm", "")
# The UIDs of a study and of its series: elements are in order, so that nothing comes in between; what refers
# to other series holds no such pair. DICOM PS3.5, 7.1.2 (explicit VR, little endian).
SERIES = re.compile(rb"\x20\0\x0d\0UI..[0-9.]+\0?\x20\0\x0e\0UI..([0-9.]+)", re.DOTALL)


def read_series(path: Path) -> str | None:
    """Return the UID of a file's DICOM series; `None` where its first bytes tell none."""
    if path.suffix.lower() not in SUFFIXES:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return _read_series(path, found.st_size, found.st_mtime_ns)


def find_siblings(path: Path) -> list[Path]:
    """Return the files of a DICOM file's series that lie in its folder, in order; only itself without one."""
    uid = read_series(path)
    if uid is None:
        return [path]
    return sorted(file for file in path.parent.iterdir() if file.is_file() and read_series(file) == uid)


# a folder may hold thousands of files of other series, which every slide of it passes by
@lru_cache(maxsize=1 << 16)
def _read_series(path: Path, size: int, changed: int) -> str | None:
    del size, changed  # they tell one state of a file from another
    try:
        with path.open("rb") as file:
            found = SERIES.search(file.read(HEAD_BYTES))
    except OSError:
        return None
    return found[1].decode() if found else None
