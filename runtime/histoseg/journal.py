"""An append-only file of what a run has finished, from which a run that was killed goes on.

After a line that says which run it is of come frames: a length, a checksum, and some arrays, which a line of
JSON describes, each compressed by Zstandard. A frame that was cut off, by a kill, a full disk or a power cut,
ends the journal; what comes before it is sound.
"""

from __future__ import annotations

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
_MAGIC = b"hsj2"
# of Zstandard: labels shrink fifty times, in a tenth of the time that zlib takes
_LEVEL = 1
# a first line longer than this is none of ours
_LONGEST_LINE = 1 << 20


class Journal:
    """The journal of one run, open for reading what is there and then for adding to it."""

    def __init__(self, path: Path, run: Mapping[str, Any], layout: Mapping[str, Any] | None = None) -> None:
        """Open or begin a journal.

        Args:
            path: Its file.
            run: What the run's result depends on, as JSON values.
            layout: How the run cuts its work into frames, as JSON values; where it goes on, that of the
                journal stands.

        Raises:
            OutputError: The file cannot be opened or written.
        """
        self._path = path
        head = json.loads(json.dumps({"run": run, "layout": layout or {}}, sort_keys=True))
        self.changed: tuple[str, ...] = ()
        """Names of what differs from the run that left the journal, which then begins afresh."""
        try:
            self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
            before = _read_head(self._file)
            if before is None or before["run"] != head["run"]:
                self.changed = name_changes(before["run"], head["run"]) if before else ()
                self._begin(head)
            else:
                head = before
            self.layout: dict[str, Any] = head["layout"]
            """How the work is cut."""
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
        data = _pack(arrays)
        try:
            self._file.write(_FRAME.pack(_MAGIC, len(data), zlib.crc32(data)))
            self._file.write(data)
            self._sync()
        except OSError as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """Close the file; one without a frame is of no use, and goes."""
        empty = os.fstat(self._file.fileno()).st_size <= self._first
        with suppress(OSError):  # a full disk has been told of
            self._file.close()
        if empty:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self, head: Mapping[str, Any]) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(head, sort_keys=True).encode() + b"\n")
        self._sync()
        sync_folder(self._path.parent)

    def _read_frame(self) -> dict[str, NDArray[Any]] | None:
        """Return the arrays of the frame here; `None`, and go back, where it is not sound."""
        place = self._file.tell()
        head = self._file.read(_FRAME.size)
        if len(head) == _FRAME.size:
            magic, size, checksum = _FRAME.unpack(head)
            left = os.fstat(self._file.fileno()).st_size - self._file.tell()
            data = self._file.read(size) if magic == _MAGIC and size <= left else b""
            if magic == _MAGIC and len(data) == size and zlib.crc32(data) == checksum:
                return _unpack(data)
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


def sync_folder(folder: Path) -> None:
    """Let a power cut forget no name in a folder, where the system can do that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _pack(arrays: Arrays) -> bytes:
    import imagecodecs

    parts = [
        imagecodecs.zstd_encode(np.ascontiguousarray(array), _LEVEL)  # type: ignore[arg-type]  # a buffer
        for array in arrays.values()
    ]
    described = [
        [name, array.dtype.str, array.shape, len(part)]
        for (name, array), part in zip(arrays.items(), parts, strict=True)
    ]
    return b"".join([json.dumps(described).encode() + b"\n", *parts])


def _unpack(data: bytes) -> dict[str, NDArray[Any]]:
    import imagecodecs

    line, _, packed = data.partition(b"\n")
    arrays, begin = {}, 0
    for name, dtype, shape, size in json.loads(line):
        values = imagecodecs.zstd_decode(packed[begin : begin + size])
        arrays[name] = np.frombuffer(values, dtype).reshape(shape)
        begin += size
    return arrays


def _read_head(file: BinaryIO) -> dict[str, Any] | None:
    """Return what the first line says; `None` where it is no line of ours."""
    line = file.readline(_LONGEST_LINE)
    if not line.endswith(b"\n"):
        return None
    try:
        head = json.loads(line)
    except ValueError:
        return None
    ours = isinstance(head, dict) and all(isinstance(head.get(key), dict) for key in ("run", "layout"))
    return head if ours else None


def name_changes(before: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of what two runs differ in."""
    return tuple(sorted(name for name in before.keys() | run.keys() if before.get(name) != run.get(name)))
