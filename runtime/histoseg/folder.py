"""A folder of results that appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from histoseg.errors import HistosegError, OutputError


@contextmanager
def make_folder(final: Path, marker: str) -> Iterator[Path]:
    """Yield a folder that becomes `final` when the block succeeds and vanishes when it fails.

    Args:
        final: The folder to be.
        marker: A file that tells an older result, which is replaced, from a folder of somebody else's.

    Raises:
        OutputError: `final` is somebody else's, or cannot be written.
    """
    if final.exists() and not (final / marker).is_file():
        raise OutputError(
            f"{final} exists and holds no histoseg result, expected a free name; choose another -o"
        )
    part, old = final.with_name(f".{final.name}.part"), final.with_name(f".{final.name}.old")
    if old.exists() and not final.exists():
        old.rename(final)  # a run was killed between the two renames of `_replace_folder`
    made = _missing_parents(final)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        _replace_folder(part, final, old)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError) and not isinstance(error, HistosegError):
            raise OutputError(
                f"{final}: cannot be written ({error.strerror or error}); choose another -o"
            ) from error
        raise


def _replace_folder(part: Path, final: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    part.replace(final)
    shutil.rmtree(old, ignore_errors=True)


def _missing_parents(path: Path) -> list[Path]:
    """Return the parents that do not exist yet, innermost first."""
    return [folder for folder in path.parents if not folder.exists()]
