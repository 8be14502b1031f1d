"""One process at a time writes a folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from histoseg.errors import OutputError
from histoseg.owner import is_owned, name_owner, write_owner

# What `flock` fails with where a file system has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.ENOSYS, errno.EINVAL)


class OutputInUseError(OutputError):
    """Another run writes the same results."""


@contextmanager
def lock_folder(folder: Path, final: Path) -> Iterator[None]:
    """Keep other processes, and other runs of this one, out of a folder, which is made.

    The lock is on the folder itself, so that none is left behind; it ends with the process. Where there are
    no locks, the owner that the folder names holds it for as long as it lives.

    Args:
        folder: What is locked.
        final: What the message names.

    Raises:
        OutputInUseError: Another run holds it.
        OSError: It cannot be made or locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        handle = _lock(folder)
        if handle is None and is_owned(folder):
            raise BlockingIOError
    except BlockingIOError as error:
        raise OutputInUseError(
            f"{final}: {name_owner(folder)} is writing it, expected one run at a time; wait for it, or "
            "choose another -o"
        ) from error
    try:
        write_owner(folder)
        yield
    finally:
        if handle is not None:
            _unlock(handle)


def _lock(folder: Path) -> int | None:
    """Return a handle that holds the folder for this process; `None` where the system has no locks.

    Raises:
        BlockingIOError: Another process holds it.
    """
    if os.name != "posix":
        return None
    import fcntl

    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.stat().st_ino == os.fstat(handle).st_ino:
            return handle
    except FileNotFoundError:
        pass  # the other run has just ended, and its folder has its final name
    except OSError as error:
        if handle is not None:
            os.close(handle)
        if error.errno in _NO_LOCKS:
            return None
        raise
    if handle is not None:
        os.close(handle)
    raise BlockingIOError(f"{folder} has just become another run's result")


def _unlock(handle: int) -> None:
    """Let go, also where a child that was forked meanwhile still has the handle."""
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
