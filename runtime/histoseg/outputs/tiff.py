"""A TIFF that is written as a stream: tiles as they come, then the directories that point at them.

No byte of a tile is written twice or moved, and tiles of several pictures may be mixed. The first bytes stay
zero until the end, so that a file which was not finished is no TIFF. Format: TIFF 6.0 (Adobe, 1992), its
Technical Note 1 (SubIFDs), and the BigTIFF design of libtiff.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

from histoseg.errors import OutputError

Kind = Literal["text", "short", "long", "rational", "offset", "directory"]

SUB_DIRECTORIES = 330
# Classic TIFF ends at 4 GiB, and tables of 8 bytes a tile come on top of the tiles, which are ten times that
# even where they are empty.
BIG_ABOVE_BYTES = 3 << 30
HEADER_BYTES, BUFFER_BYTES = 16, 1 << 20
MAX_LONG = 0xFFFF_FFFF


@dataclass(frozen=True)
class Entry:
    """What one tag says."""

    kind: Kind
    values: bytes | Sequence[int]
    """Of a text its bytes without the closing zero, of a rational numerator and denominator."""


@dataclass(frozen=True)
class Directory:
    """One picture of the file."""

    entries: Mapping[int, Entry]
    """By tag."""
    subs: tuple[Directory, ...] = ()
    """Its reduced versions, the largest first."""


@dataclass(frozen=True)
class _Form:
    """In what TIFF and BigTIFF differ."""

    header: str
    start: tuple[int, ...]
    count: str
    cell: str
    offset: str
    types: Mapping[Kind, tuple[int, str]]
    """Number and dtype of the elements, by kind."""


_TYPES: Mapping[Kind, tuple[int, str]] = {
    "text": (2, "u1"),
    "short": (3, "<u2"),
    "long": (4, "<u4"),
    "rational": (5, "<u4"),
}
_CLASSIC = _Form(
    "<2sHI", (42,), "<H", "<HHI", "<I", {**_TYPES, "offset": (4, "<u4"), "directory": (13, "<u4")}
)
_BIG = _Form(
    "<2sHHHQ", (43, 8, 0), "<Q", "<HHQ", "<Q", {**_TYPES, "offset": (16, "<u8"), "directory": (18, "<u8")}
)


class TiffStream:
    """Writes one TIFF. A context manager: leaving it before `finish` removes the file."""

    def __init__(self, path: Path) -> None:
        """Begin the file.

        Raises:
            OutputError: It cannot be written.
        """
        self._path = path
        self._end = 0
        self._stored: dict[bytes, int] = {}
        with self._telling():
            self._file = path.open("wb", buffering=BUFFER_BYTES)
        self.append(bytes(HEADER_BYTES))

    def __enter__(self) -> Self:
        """Return the stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not finished."""
        if self._file.closed:
            return
        with suppress(OSError):  # what led here says more
            self._file.close()
        self._path.unlink(missing_ok=True)

    def append(self, data: bytes | bytearray) -> int:
        """Write bytes and return where they lie.

        Raises:
            OutputError: They cannot be written.
        """
        with self._telling():
            self._file.write(data)
        self._end += len(data)
        return self._end - len(data)

    def finish(self, chain: Sequence[Directory]) -> None:
        """Write the directories, as a BigTIFF where the tiles need it.

        Args:
            chain: The pictures, in order.

        Raises:
            OutputError: They cannot be written.
        """
        form = _BIG if self._end > BIG_ABOVE_BYTES else _CLASSIC
        first = 0
        for directory in reversed(chain):  # each names the next, which so lies before it
            first = self._write(form, directory, first)
        with self._telling():
            self._file.seek(0)
            self._file.write(struct.pack(form.header, b"II", *form.start, first))
            self._file.close()

    def _write(self, form: _Form, directory: Directory, following: int) -> int:
        entries = dict(directory.entries)
        if directory.subs:
            subs = [self._write(form, sub, 0) for sub in directory.subs]
            entries[SUB_DIRECTORIES] = Entry("directory", subs)
        cells = [self._pack(form, code, entry) for code, entry in sorted(entries.items())]
        parts = [struct.pack(form.count, len(cells)), *cells, struct.pack(form.offset, following)]
        return self._append_aligned(b"".join(parts))

    def _pack(self, form: _Form, code: int, entry: Entry) -> bytes:
        """Return a directory's line, whose values lie elsewhere unless they fit."""
        number, dtype = form.types[entry.kind]
        if isinstance(entry.values, bytes):
            values = entry.values + b"\0"
        else:
            values = np.array(entry.values, dtype).tobytes()
        count = len(values) // (8 if entry.kind == "rational" else np.dtype(dtype).itemsize)
        room = struct.calcsize(form.offset)
        if len(values) > room:
            values = struct.pack(form.offset, self._store(values))
        return struct.pack(form.cell, code, number, count) + values.ljust(room, b"\0")

    def _store(self, values: bytes) -> int:
        """Write values once, however many directories name them."""
        if values not in self._stored:
            self._stored[values] = self._append_aligned(values)
        return self._stored[values]

    def _append_aligned(self, data: bytes) -> int:
        self.append(bytes(-self._end % 8))
        return self.append(data)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Name the file in what the system says."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self._path}: cannot be written ({error}); free space or choose another -o"
            ) from error


def build_rational(value: Fraction) -> Entry:
    """Return a number above 0 as the fraction nearest to it that a TIFF can hold."""
    fraction = value.limit_denominator(int(MAX_LONG / max(Fraction(1), value)))
    return Entry("rational", (fraction.numerator, fraction.denominator))
