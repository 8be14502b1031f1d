"""A folder of results that appears whole or not at all, and is written by one run at a time."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from histoseg.errors import HistosegError, OutputError, RoiError, SlideError, TruthError
from histoseg.owner import OWNER_NAME, is_owned, name_owner, write_owner

REPORT_NAME = "report.json"
# A journal does not help against what a run was given.
HOPELESS = (SlideError, TruthError, RoiError)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def make_folder(
    final: Path,
    names: Collection[str],
    *,
    report: str = REPORT_NAME,
    journal: str | None = None,
    fresh: bool = False,
) -> Iterator[Path]:
    """Yield a folder that becomes `final` when the block succeeds and vanishes when it fails.

    Args:
        final: The folder to be.
        names: The files that a result may hold. An older result is replaced when it holds no others.
        report: The JSON file by which a result is known; its object has the key `histoseg`.
        journal: A file that outlives a failure which is not the input's, for the next run to go on from; it
            is no part of the result.
        fresh: Drop what an earlier run has left of it.

    Raises:
        OutputError: `final` is, or holds, somebody else's; or cannot be written; or another run writes it.
    """
    final = final.resolve()  # a link keeps leading where it led
    names = {*names, journal} if journal else names
    _refuse_foreign(final, names, report)
    part, old = final.with_name(f".{final.name}.part"), final.with_name(f".{final.name}.old")
    made = _missing_parents(final)
    with ExitStack() as stack:
        try:
            stack.enter_context(_hold_folder(part, final, keep=None if fresh else journal))
            _restore(old, final)  # a run was killed between the two renames of `_replace_folder`
            yield part
            _refuse_foreign(final, names, report)
            (part / OWNER_NAME).unlink()
            _sync_files(part)
            _replace_folder(part, final, old)
        except OutputInUseError:
            raise
        except BaseException as error:
            _restore(old, final)
            _give_up(part, made, None if isinstance(error, HOPELESS) else journal)
            if isinstance(error, OSError) and not isinstance(error, HistosegError) and _is_ours(error, part):
                raise OutputError(
                    f"{final}: cannot be written ({error.strerror or error}); {_advise(error)}"
                ) from error
            raise
    if journal is not None:
        (final / journal).unlink(missing_ok=True)  # only now that nothing can be lost any more


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
def _hold_folder(part: Path, final: Path, keep: str | None) -> Iterator[None]:
    """Make `part` empty, but for one file, and keep other runs out of it.

    The lock is on the folder itself, so that none is left behind; it ends with the process. Where there are
    no locks, the owner that the folder names holds it for as long as it lives.
    """
    part.mkdir(parents=True, exist_ok=True)
    try:
        handle = _lock(part)
        if handle is None and is_owned(part):
            raise BlockingIOError
    except BlockingIOError as error:
        raise OutputInUseError(
            f"{final}: {name_owner(part)} is writing it, expected one run at a time; wait for it, or choose "
            "another -o"
        ) from error
    try:
        empty_folder(part, keep)
        write_owner(part)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """Return a handle that holds the folder for this process; `None` where the system has no locks.

    Raises:
        BlockingIOError: Another process holds it.
    """
    if os.name != "posix":
        return None
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.stat().st_ino == os.fstat(handle).st_ino:
            return handle
    except FileNotFoundError:
        pass  # the other run has just ended, and its folder has its final name
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF):
            return None
        raise
    os.close(handle)
    raise BlockingIOError(f"{folder} has just become another run's result")


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


def empty_folder(folder: Path, keep: str | None = None) -> None:
    """Remove what is in a folder, but for the file of one name."""
    for path in folder.iterdir():
        if path.name != keep:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _sync_files(folder: Path) -> None:
    """Let what was written be on the disk before it gets its name: a power cut keeps a rename, not data."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _advise(error: OSError) -> str:
    return (
        "make room and run it again, or choose another -o" if error.errno in _NO_ROOM else "choose another -o"
    )


def _give_up(part: Path, made: list[Path], keep: str | None) -> None:
    """Leave the file of one name, if it is there, and else nothing."""
    if keep is not None and (part / keep).exists():
        empty_folder(part, keep)
        return
    shutil.rmtree(part, ignore_errors=True)
    for folder in made:
        with suppress(OSError):
            folder.rmdir()  # only where it is empty


def _missing_parents(path: Path) -> list[Path]:
    """Return the parents that do not exist yet, innermost first."""
    return [folder for folder in path.parents if not folder.exists()]
