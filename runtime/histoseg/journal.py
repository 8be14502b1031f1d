"""An append-only file of what a run has finished, from which a run that was killed goes on.

After a line that says which run it is of come frames: a length, a checksum, and some arrays as an `.npz`
archive. A frame that was cut off, by a kill or a full disk, ends the journal; what comes before it is sound.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from histoseg.errors import OutputError

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

_FRAME = struct.Struct("<4sQI")
_MAGIC = b"hsj1"
# a first line longer than this is none of ours
_LONGEST_LINE = 1 << 20


class Journal:
    """The journal of one run, open for reading what is there and then for adding to it."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        """Open or begin a journal.

        Args:
            path: Its file.
            run: What the run's result depends on, as JSON values.

        Raises:
            OutputError: The file cannot be opened or written.
        """
        self._path = path
        self.changed: tuple[str, ...] = ()
        """Names of what differs from the run that left the journal, which then begins afresh."""
        text = json.dumps(run, sort_keys=True)
        try:
            self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
            before = _read_run(self._file)
            if before is None or before != json.loads(text):
                self.changed = _compare(before or {}, run) if before is not None else ()
                self._begin(text)
            self._first = self._file.tell()
        except OSError as error:
            raise self._explain(error) from error

    def replay(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the arrays of each sound frame; whatever follows the last of them is cut off.

        Nothing is appended before all have been taken.
        """
        self._file.seek(self._first)
        while (arrays := self._read_frame()) is not None:
            place = self._file.tell()
            yield arrays
            self._file.seek(place)
        self._file.truncate()

    def append(self, arrays: Arrays) -> None:
        """Add a frame; it is on the disk when this returns.

        Raises:
            OutputError: It cannot be written.
        """
        buffer = io.BytesIO()
        named: dict[str, Any] = dict(arrays)
        np.savez_compressed(buffer, **named)
        data = buffer.getvalue()
        try:
            self._file.write(_FRAME.pack(_MAGIC, len(data), zlib.crc32(data)))
            self._file.write(data)
            self._sync()
        except OSError as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # a full disk has been told of
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self, text: str) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text.encode() + b"\n")
        self._sync()

    def _read_frame(self) -> dict[str, NDArray[Any]] | None:
        """Return the arrays of the frame here; `None`, and go back, where it is not sound."""
        place = self._file.tell()
        head = self._file.read(_FRAME.size)
        if len(head) == _FRAME.size:
            magic, size, checksum = _FRAME.unpack(head)
            left = os.fstat(self._file.fileno()).st_size - self._file.tell()
            data = self._file.read(size) if magic == _MAGIC and size <= left else b""
            if magic == _MAGIC and len(data) == size and zlib.crc32(data) == checksum:
                with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                    return dict(archive)
        self._file.seek(place)
        return None

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _explain(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path}: cannot write the journal: {error.strerror}; "
            "make room, and the same command goes on where it stopped"
        )


def _read_run(file: BinaryIO) -> dict[str, Any] | None:
    """Return what the first line says; `None` where it is no line of ours."""
    line = file.readline(_LONGEST_LINE)
    if not line.endswith(b"\n"):
        return None
    try:
        run = json.loads(line)
    except ValueError:
        return None
    return run if isinstance(run, dict) else None


def _compare(before: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(name for name in before.keys() | run.keys() if before.get(name) != run.get(name)))
