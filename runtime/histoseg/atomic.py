"""Files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def write_whole(path: Path, *, suffix: str = "") -> Iterator[Path]:
    """Yield a file to write that becomes `path` when the block succeeds and vanishes when it fails.

    It lies beside `path`, since a rename is atomic within one file system only. What was at `path` stays
    there until then.

    Args:
        path: The file to be; an older one is replaced.
        suffix: Ends the name of the file to write, for writers that choose a format by it.

    Raises:
        OSError: The file cannot get its name.
    """
    part = path.with_name(f".{path.name}.part{suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        # an error before this one says more
        with suppress(OSError):
            part.unlink()
