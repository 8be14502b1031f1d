"""One TIFF pyramid that tifffile, OpenSlide and Bio-Formats open with all levels, streamed.

OME-TIFF keeps its reduced levels in SubIFDs and out of the main chain of directories; OpenSlide looks for
them in the main chain only. So each has two directories that share the same tiles: one in the SubIFDs of its
picture, and one, marked as reduced, at the end of the main chain, which OME-XML does not name. Directories
are some hundreds of bytes; tiles, and the tables that say where they lie, are in the file once.
See docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html#sub-resolutions and
openslide.org/formats/generic-tiff.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from histoseg.outputs.rows import RowBlocks
from histoseg.outputs.tiff import Directory, Entry, TiffStream, build_rational

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.uint8]
    Halve = Callable[[Values], Values]

TILE_PX = 256
SMALLEST_LEVEL_PX = 512
# Of real labels and probabilities, 9 takes five times as long for a tenth; tiles of 512 px gain nothing.
DEFLATE_LEVEL = 6
UM_PER_CM = 10_000

# Tags and numbers of TIFF 6.0
SUBFILE_TYPE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 254, 256, 257, 258, 259, 262, 270
SAMPLES, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, SOFTWARE, COLOR_MAP = 277, 282, 283, 296, 305, 320
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
REDUCED, DEFLATE, CENTIMETER = 1, 8, 3


@dataclass(frozen=True)
class Frame:
    """What is written where."""

    m_size: tuple[int, int]
    """Width and height of level 0."""
    spacing_um_px: tuple[float, float]
    """um/px of level 0 along x and y."""
    planes: int
    """Pictures of that size: the channels."""
    description: bytes
    """The OME-XML."""
    entries: Mapping[int, Entry]
    """Tags that say what pixel values are: photometric interpretation, colour map."""


class TilePyramid:
    """Writes a pyramid from rows. A context manager: leaving it unclosed removes the file.

    Memory is one row of tiles for each level and plane. The same values give the same bytes, whatever rows
    they come in.
    """

    def __init__(self, path: Path, frame: Frame, halve: Halve) -> None:
        """Begin the file.

        Args:
            path: The TIFF.
            frame: What it holds.
            halve: Returns `(rows, columns)` uint8 at half the size, rounded up.

        Raises:
            OutputError: It cannot be written.
        """
        self._frame = frame
        self._blocks = RowBlocks(TILE_PX)
        self._stream = TiffStream(path)
        self._planes = [_Plane(self._stream, frame.m_size, halve) for _ in range(frame.planes)]

    def __enter__(self) -> Self:
        """Return the pyramid itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not closed."""
        self._stream.__exit__(kind, error, trace)

    def take(self, rows: Values) -> None:
        """Take the next rows, `(rows, width, planes)` uint8.

        Raises:
            OutputError: They cannot be written.
        """
        for block in self._blocks.push(rows):
            self._add_block(block)

    def close(self) -> None:
        """Write what is left, and the directories.

        Raises:
            OutputError: They cannot be written.
        """
        rest = self._blocks.rest()
        if rest is not None:
            self._add_block(rest)
        for plane in self._planes:
            plane.flush()
        self._stream.finish([*self._list_pictures(), *self._list_reduced(self._planes[0])])

    def _add_block(self, block: Values) -> None:
        for index, plane in enumerate(self._planes):
            plane.add(block[..., index])

    def _list_pictures(self) -> Iterator[Directory]:
        about = {DESCRIPTION: Entry("text", self._frame.description)}
        for plane in self._planes:
            entries = {SUBFILE_TYPE: Entry("long", [0]), **about, **self._describe(plane, 0)}
            yield Directory(entries, tuple(self._list_reduced(plane)))
            about = {}  # OME-XML is said once

    def _list_reduced(self, plane: _Plane) -> Iterator[Directory]:
        for index in range(1, len(plane.levels)):
            yield Directory({SUBFILE_TYPE: Entry("long", [REDUCED]), **self._describe(plane, index)})

    def _describe(self, plane: _Plane, index: int) -> dict[int, Entry]:
        level = plane.levels[index]
        x, y = (
            build_rational(UM_PER_CM / (Fraction(str(spacing)) * 2**index))
            for spacing in self._frame.spacing_um_px
        )
        return {
            WIDTH: Entry("long", [level.width]),
            LENGTH: Entry("long", [level.height]),
            BITS: Entry("short", [8]),
            COMPRESSION: Entry("short", [DEFLATE]),
            SAMPLES: Entry("short", [1]),
            X_RESOLUTION: x,
            Y_RESOLUTION: y,
            RESOLUTION_UNIT: Entry("short", [CENTIMETER]),
            SOFTWARE: Entry("text", b"histoseg"),
            TILE_WIDTH: Entry("short", [TILE_PX]),
            TILE_LENGTH: Entry("short", [TILE_PX]),
            TILE_OFFSETS: Entry("offset", level.offsets),
            TILE_BYTES: Entry("long", level.lengths),
            **self._frame.entries,
        }


class _Plane:
    """All levels of one channel."""

    def __init__(self, stream: TiffStream, m_size: tuple[int, int], halve: Halve) -> None:
        self.levels = [_Level(stream, size) for size in plan_levels(m_size)]
        self._halve = halve

    def add(self, rows: Values, index: int = 0) -> None:
        """Take the next rows of a level, and write what they complete there and below."""
        if index < len(self.levels):
            for block in self.levels[index].push(rows):
                self.add(self._halve(block), index + 1)

    def flush(self) -> None:
        """Write what is left."""
        for index, level in enumerate(self.levels):
            for block in level.flush():
                self.add(self._halve(block), index + 1)


class _Level:
    """The tiles of one level of one channel."""

    def __init__(self, stream: TiffStream, size: tuple[int, int]) -> None:
        self.width, self.height = size
        self.offsets: list[int] = []
        self.lengths: list[int] = []
        self._stream = stream
        self._blocks = RowBlocks(TILE_PX)

    def push(self, rows: Values) -> Iterator[Values]:
        """Take rows; yield each row of tiles once it is written."""
        for block in self._blocks.push(rows):
            self._write(block)
            yield block

    def flush(self) -> Iterator[Values]:
        """Write the last, lower row of tiles, and yield it if there is one."""
        rest = self._blocks.rest()
        if rest is not None:
            self._write(rest)
            yield rest

    def _write(self, block: Values) -> None:
        import imagecodecs  # libdeflate: half the time of zlib for the same size

        for left in range(0, self.width, TILE_PX):
            tile = np.zeros((TILE_PX, TILE_PX), np.uint8)
            part = block[:, left : left + TILE_PX]
            tile[: part.shape[0], : part.shape[1]] = part
            data = imagecodecs.deflate_encode(tile.tobytes(), DEFLATE_LEVEL)
            self.offsets.append(self._stream.append(data))
            self.lengths.append(len(data))


def plan_levels(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the size of each level: halved, rounded up, until the longer side is at most 512 px."""
    sizes = [size]
    while max(sizes[-1]) > SMALLEST_LEVEL_PX:
        width, height = sizes[-1]
        sizes.append(((width + 1) // 2, (height + 1) // 2))
    return sizes


def split_blocks(values: Values) -> tuple[Values, Values, Values, Values]:
    """Return the upper left, upper right, lower left and lower right pixels of all blocks of 2 x 2.

    Odd borders are repeated.
    """
    odd_rows, odd_columns = values.shape[0] % 2, values.shape[1] % 2
    if odd_rows or odd_columns:
        values = np.pad(values, ((0, odd_rows), (0, odd_columns)), mode="edge")
    return values[::2, ::2], values[::2, 1::2], values[1::2, ::2], values[1::2, 1::2]
