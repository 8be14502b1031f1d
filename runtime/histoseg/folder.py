"""A folder of results that appears whole or not at all, and is written by one run at a time."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from histoseg.errors import HistosegError, OutputError

REPORT_NAME = "report.json"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def make_folder(final: Path, names: Collection[str], *, report: str = REPORT_NAME) -> Iterator[Path]:
    """Yield a folder that becomes `final` when the block succeeds and vanishes when it fails.

    Args:
        final: The folder to be.
        names: The files that a result may hold. An older result is replaced when it holds no others.
        report: The JSON file by which a result is known; its object has the key `histoseg`.

    Raises:
        OutputError: `final` is, or holds, somebody else's; or cannot be written; or another run writes it.
    """
    final = final.resolve()  # a link keeps leading where it led
    _refuse_foreign(final, names, report)
    part, old = final.with_name(f".{final.name}.part"), final.with_name(f".{final.name}.old")
    made = _missing_parents(final)
    with ExitStack() as stack:
        try:
            stack.enter_context(_hold_folder(part, final))
            _restore(old, final)  # a run was killed between the two renames of `_replace_folder`
            yield part
            _refuse_foreign(final, names, report)
            _replace_folder(part, final, old)
        except OutputInUseError:
            raise
        except BaseException as error:
            _restore(old, final)
            _remove(part, made)
            if isinstance(error, OSError) and not isinstance(error, HistosegError) and _is_ours(error, part):
                raise OutputError(
                    f"{final}: cannot be written ({error.strerror or error}); choose another -o"
                ) from error
            raise


class OutputInUseError(OutputError):
    """Another run writes the same results."""


def _refuse_foreign(final: Path, names: Collection[str], report: str) -> None:
    """Refuse a folder that is not, or not only, a result of this package."""
    if not final.exists():
        return
    if not _is_result(final, report):
        raise OutputError(
            f"{final} exists and holds no histoseg result, expected a free name; choose another -o"
        )
    strangers = sorted(path.name for path in final.iterdir() if path.name not in names)
    if strangers:
        raise OutputError(
            f"{final} holds '{strangers[0]}' besides a histoseg result, which would be lost; "
            "move it away, or choose another -o"
        )


def _is_result(folder: Path, report: str) -> bool:
    try:
        document = json.loads((folder / report).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and "histoseg" in document


@contextmanager
def _hold_folder(part: Path, final: Path) -> Iterator[None]:
    """Make `part` empty and keep other runs out of it; what a killed run left there is removed.

    The lock is on the folder itself, so that none is left behind; it ends with the process.
    """
    part.mkdir(parents=True, exist_ok=True)
    handle = _lock(part)
    if handle is None and _can_lock():
        raise OutputInUseError(
            f"{final}: another run is writing it, expected one at a time; wait for it, or choose another -o"
        )
    try:
        for path in part.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _can_lock() -> bool:
    return os.name == "posix"


def _lock(folder: Path) -> int | None:
    """Return a handle that holds the folder for this process, or `None` where another process does."""
    if not _can_lock():
        return None
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.stat().st_ino == os.fstat(handle).st_ino:
            return handle
    except FileNotFoundError:
        pass  # the other run has just ended, and its folder has its final name
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF):
            return handle  # a file system without locks: nobody can tell
        raise
    os.close(handle)
    return None


def _is_ours(error: OSError, part: Path) -> bool:
    """Whether it came of writing here, and not of a slide or of a caller's function."""
    name = error.filename if isinstance(error.filename, str | os.PathLike) else ""
    return error.errno in _NO_ROOM or Path(name).is_relative_to(part.parent)


def _replace_folder(part: Path, final: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    part.replace(final)
    shutil.rmtree(old, ignore_errors=True)


def _restore(old: Path, final: Path) -> None:
    """Give an earlier result its name back."""
    if old.exists() and not final.exists():
        old.rename(final)


def _remove(part: Path, made: list[Path]) -> None:
    shutil.rmtree(part, ignore_errors=True)
    for folder in made:
        with suppress(OSError):
            folder.rmdir()  # only where it is empty


def _missing_parents(path: Path) -> list[Path]:
    """Return the parents that do not exist yet, innermost first."""
    return [folder for folder in path.parents if not folder.exists()]
