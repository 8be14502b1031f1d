"""An open slide file that threads share, that closes once its readers are out, and that survives a fork."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from histoseg.errors import SlideError

# How a TIFF begins, and where its first directory is told: classic ones and BigTIFF, of either byte order.
TIFF_HEADS = {
    b"II*\0": struct.Struct("<4xI"),
    b"MM\0*": struct.Struct(">4xI"),
    b"II+\0": struct.Struct("<8xQ"),
    b"MM\0+": struct.Struct(">8xQ"),
}


class SlideHandle:
    """A slide file open in this process; a process forked from it opens the file again for itself.

    OpenSlide aborts the process when a slide is closed under a reader, and its locks stay locked for ever in
    a child that was forked while another thread held them. So every process has its own handle and lock,
    found by the process's id. What a child inherits is never used, nor freed if a thread was in it: the
    references of threads that a fork leaves behind stay for ever.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            SlideError: The file is missing, or no format that OpenSlide reads.
        """
        self.path = path
        self._closed = False
        self._lives = {os.getpid(): _Life(path)}
        with self.use():
            pass

    @contextmanager
    def use(self) -> Iterator[tuple[Any, int]]:
        """Yield the `openslide.OpenSlide` and a descriptor of the file, which stay open meanwhile.

        Raises:
            SlideError: The slide is closed, or cannot be opened again after a fork.
        """
        life = self._lives.get(os.getpid())
        if life is None:  # setdefault is atomic: threads of a new child agree on one life
            life = self._lives.setdefault(os.getpid(), _Life(self.path))
        with life.idle:
            if self._closed:
                raise SlideError(f"{self.path}: the slide is closed; open it again with open_slide")
            opened = life.open()
            life.readers += 1
        try:
            yield opened
        finally:
            with life.idle:
                life.readers -= 1
                life.idle.notify_all()

    def close(self) -> None:
        """Close the file in this process once nobody reads it any more."""
        self._closed = True
        life = self._lives.get(os.getpid())
        if life is None:
            return
        with life.idle:
            while life.readers:
                life.idle.wait()
            life.close()


class _Life:
    """What one process has of the file."""

    def __init__(self, path: Path) -> None:
        self.idle = threading.Condition()
        self.readers = 0
        self._path = path
        self._opened: tuple[Any, int] | None = None

    def open(self) -> tuple[Any, int]:
        """Return the handle and the descriptor, which are opened by the first call."""
        if self._opened is None:
            handle = open_handle(self._path)
            self._opened = handle, os.open(self._path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        return self._opened

    def close(self) -> None:
        """Close both, if they are open. Nobody may be reading."""
        if self._opened is not None:
            handle, descriptor = self._opened
            self._opened = None
            handle.close()
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def open_handle(path: Path) -> Any:
    """Return an `openslide.OpenSlide`.

    Raises:
        SlideError: The file is missing, or no format that OpenSlide reads.
    """
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise SlideError(
            f"OpenSlide cannot be loaded ({error}); "
            "repair with: pip install --force-reinstall openslide-python openslide-bin"
        ) from error
    if not path.exists():
        raise SlideError(f"{path}: no such file")
    try:
        return openslide.OpenSlide(str(path))
    except openslide.OpenSlideError as error:
        raise SlideError(f"{path}: {_explain_unreadable(path, error)}") from error


def _explain_unreadable(path: Path, error: Exception) -> str:
    """Say in words why a file did not open as a slide."""
    if path.is_dir():
        return "is a folder, expected a slide file"
    if not path.is_file():
        return "is no regular file, expected a slide file"
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as unreadable:
        return f"cannot be read ({unreadable.strerror}); check its permissions"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not a slide: fetch the real file with `git lfs pull`"
    if head[:4] in TIFF_HEADS:
        return _explain_tiff(head, path.stat().st_size, error)
    return (
        f"is no slide that OpenSlide reads ({error}): expected SVS, NDPI, MRXS, DICOM, tiled TIFF or the like"
    )


def _explain_tiff(head: bytes, size: int, error: Exception) -> str:
    """Say why a TIFF of `size` bytes that begins with `head` did not open as a slide."""
    told = TIFF_HEADS[head[:4]]
    directory = told.unpack_from(head)[0] if len(head) >= told.size else told.size
    if directory >= size:
        return (
            f"is cut off at {size} bytes, expected its directory at byte {directory}: "
            "copy it again from the scanner"
        )
    return (
        f"is a TIFF that OpenSlide cannot read ({error}): expected a tiled slide; "
        "convert it with `vips tiffsave --tile --pyramid`"
    )
