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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from histoseg.errors import OutputError
from histoseg.folder import NO_ROOM, sync_folder

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

# magic, bytes, their checksum, and one of these three
_FRAME = struct.Struct("<4sQII")
_MAGIC = b"hsj3"
# of Zstandard: labels shrink fifty times, in a tenth of the time that zlib takes
_LEVEL = 1
# Names that `Journal.changed` may hold besides those of the run's parts.
DAMAGE, ORDER = "journal", "order"
# a first line longer than this is none of ours
_LONGEST_LINE = 1 << 20


class Journal:
    """The journal of one run, open for reading what is there and then for adding to it."""

    def __init__(self, path: Path, run: Mapping[str, Any], layout: Mapping[str, Any] | None = None) -> None:
        """Open or begin a journal.

        Args:
            path: Its file.
            run: What the run's result depends on, as JSON values; see `name_changes`.
            layout: How the run cuts its work into frames, as JSON values; where it goes on, that of the
                journal stands.

        Raises:
            OutputError: The file cannot be opened or written.
        """
        self._path = path
        head = json.loads(json.dumps({"run": run, "layout": layout or {}}, sort_keys=True))
        self.changed: tuple[str, ...] = ()
        """Names of what differs from the run that left the journal, which then begins afresh."""
        self.is_new = True
        """Whether it begins here."""
        try:
            self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
            with _closing_on_error(self._file):
                self._open(head)
        except OSError as error:
            raise self._explain(error, empty=True) from error

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
            self._file.write(_pack_frame(data))
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

    def _open(self, head: dict[str, Any]) -> None:
        before, is_empty = _read_head(self._file), os.fstat(self._file.fileno()).st_size == 0
        if before is not None:
            self.changed = name_changes(before["run"], head["run"])
        elif not is_empty:
            self.changed = (DAMAGE,)
        if before is None or self.changed:
            self._begin(head)
        else:
            head, self.is_new = before, False
        self.layout: dict[str, Any] = head["layout"]
        """How the work is cut."""
        self._first = self._file.tell()

    def _begin(self, head: Mapping[str, Any]) -> None:
        self._file.seek(0)
        self._file.truncate()
        text = json.dumps(head, sort_keys=True).encode()
        try:
            self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
            self._sync()
        except OSError:
            self._path.unlink(missing_ok=True)  # it does not even say which run it is of
            raise
        sync_folder(self._path.parent)

    def _read_frame(self) -> dict[str, NDArray[Any]] | None:
        """Return the arrays of the frame here; `None`, and go back, where it is not sound."""
        place = self._file.tell()
        data = _read_data(self._file)
        if data is None:
            self._file.seek(place)
            return None
        return _unpack(data)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _explain(self, error: OSError, *, empty: bool = False) -> OutputError:
        advice = "make room" if error.errno in NO_ROOM else "choose another -o"
        if not empty:
            advice += ", and the same command goes on where it stopped"
        return OutputError(f"{self._path}: cannot write the journal ({error.strerror or error}); {advice}")


@contextmanager
def _closing_on_error(file: BinaryIO) -> Iterator[None]:
    """Close a file where the block fails, whatever that says of a full disk."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            file.close()
        raise


def _pack_frame(data: bytes) -> bytes:
    head = struct.pack("<4sQI", _MAGIC, len(data), zlib.crc32(data))
    return head + struct.pack("<I", zlib.crc32(head))


def _read_data(file: BinaryIO) -> bytes | None:
    """Return the data of the frame here; `None` where it is not sound."""
    head = file.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    magic, size, checksum, of_head = _FRAME.unpack(head)
    if magic != _MAGIC or zlib.crc32(head[:-4]) != of_head:
        return None
    data = file.read(size)
    return data if len(data) == size and zlib.crc32(data) == checksum else None


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
    """Return what the first line says; `None` where it is no sound line of ours."""
    checksum, _, text = file.readline(_LONGEST_LINE).rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    head: dict[str, Any] = json.loads(text)
    return head


def name_changes(before: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of what two runs differ in.

    What `run` says `None` of under the name `order` does not count: a run that nobody has ordered to begin
    afresh takes over what such an order has left.
    """
    names = before.keys() | run.keys()
    if run.get(ORDER) is None:
        names -= {ORDER}
    return tuple(sorted(name for name in names if before.get(name) != run.get(name)))
