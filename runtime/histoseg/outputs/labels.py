"""`labels.tif`: the classes as a tiled, lossless, pyramidal TIFF with um/px and a palette.

tifffile and OpenSlide read it. Pixels are class indices, uint8; the palette gives viewers the class colours.
Compressed tiles are spooled as bands arrive, one file for each level, and put together at the end: memory is
one row of tiles, whatever the slide's size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

import numpy as np

from histoseg.colors import parse_color
from histoseg.errors import OutputError
from histoseg.outputs.rows import RowBlocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels

TILE_PX = 256
SMALLEST_LEVEL_PX = 512
DEFLATE_LEVEL = 6


class LabelPyramid:
    """Writes `labels.tif` from bands of labels. A context manager: leaving it drops the spools."""

    def __init__(
        self, path: Path, m_size: tuple[int, int], spacing_um_px: tuple[float, float], colors: tuple[str, ...]
    ) -> None:
        """Prepare to write.

        Args:
            path: The TIFF; it appears when the pyramid is closed.
            m_size: Width and height of level 0.
            spacing_um_px: um/px of level 0 along x and y.
            colors: `#rrggbb` of each class.
        """
        self._path = path
        self._spacing = spacing_um_px
        self._palette = build_palette(colors)
        self._levels = [_Level(path.parent, size) for size in plan_levels(m_size)]

    def __enter__(self) -> Self:
        """Return the pyramid itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the spools."""
        for level in self._levels:
            level.drop()

    def add(self, m_y: int, labels: Labels) -> None:
        """Take the next rows."""
        del m_y  # bands come in order
        self._pass_down(0, labels)

    def close(self) -> None:
        """Put the pyramid together.

        Raises:
            OutputError: The file cannot be written.
        """
        for index, level in enumerate(self._levels):
            for halved in level.flush():
                self._pass_down(index + 1, halved)
        try:
            self._assemble()
        except OSError as error:
            raise OutputError(
                f"{self._path}: cannot write the labels ({error}); free space or choose another -o"
            ) from error

    def _pass_down(self, index: int, rows: Labels) -> None:
        if index == len(self._levels):
            return
        for halved in self._levels[index].push(rows):
            self._pass_down(index + 1, halved)

    def _assemble(self) -> None:
        import tifffile

        with tifffile.TiffWriter(self._path, bigtiff=self._is_big()) as tif:
            for index, level in enumerate(self._levels):
                scale = 2**index
                tif.write(
                    level.iter_tiles(),
                    shape=(level.height, level.width),
                    dtype=np.uint8,
                    tile=(TILE_PX, TILE_PX),
                    compression="adobe_deflate",
                    photometric="palette",
                    colormap=self._palette,
                    resolution=(1e4 / (self._spacing[0] * scale), 1e4 / (self._spacing[1] * scale)),
                    resolutionunit="CENTIMETER",
                    subfiletype=1 if index else 0,
                    metadata=None,
                    software="histoseg",
                )

    def _is_big(self) -> bool:
        return sum(level.stored_bytes for level in self._levels) > 3 << 30


class _Level:
    """One level of the pyramid: compressed tiles in a spool file."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self.width, self.height = size
        self.stored_bytes = 0
        self._blocks = RowBlocks(TILE_PX)
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix=".labels-")  # noqa: SIM115
        self._lengths: list[int] = []

    def push(self, rows: Labels) -> Iterator[Labels]:
        """Store rows; yield them halved, for the next level."""
        for block in self._blocks.push(rows):
            yield self._store(block)

    def flush(self) -> Iterator[Labels]:
        """Store what is left."""
        rest = self._blocks.rest()
        if rest is not None:
            yield self._store(rest)

    def iter_tiles(self) -> Iterator[bytes]:
        """Yield the compressed tiles in order."""
        self._spool.seek(0)
        for length in self._lengths:
            yield self._spool.read(length)

    def drop(self) -> None:
        self._spool.close()

    def _store(self, block: Labels) -> Labels:
        import imagecodecs  # libdeflate: half the time of zlib for the same size

        columns = -(-self.width // TILE_PX)
        padded = np.zeros((TILE_PX, columns * TILE_PX), np.uint8)
        padded[: len(block), : block.shape[1]] = block
        for column in range(columns):
            tile = padded[:, column * TILE_PX : (column + 1) * TILE_PX]
            data = imagecodecs.deflate_encode(tile.tobytes(), DEFLATE_LEVEL)
            self._spool.write(data)
            self._lengths.append(len(data))
            self.stored_bytes += len(data)
        return halve_labels(block)


def plan_levels(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the size of each level: halved, rounded up, until the longer side is at most 512 px."""
    sizes = [size]
    while max(sizes[-1]) > SMALLEST_LEVEL_PX:
        width, height = sizes[-1]
        sizes.append(((width + 1) // 2, (height + 1) // 2))
    return sizes


def halve_labels(labels: Labels) -> Labels:
    """Return labels at half the size, by majority of each 2 x 2 block (odd borders are repeated)."""
    odd_rows, odd_columns = labels.shape[0] % 2, labels.shape[1] % 2
    if odd_rows or odd_columns:
        labels = np.pad(labels, ((0, odd_rows), (0, odd_columns)), mode="edge")
    a, b, c, d = labels[::2, ::2], labels[::2, 1::2], labels[1::2, ::2], labels[1::2, 1::2]
    # any value that occurs twice is a majority; with four different ones the top left stands
    result: Labels = np.where(c == d, c, np.where((b == c) | (b == d), b, a))
    return result


def build_palette(colors: tuple[str, ...]) -> NDArray[np.uint16]:
    """Return a TIFF colour map, `(3, 256)` uint16, from `#rrggbb` of each class; the rest is black."""
    palette = np.zeros((3, 256), np.uint16)
    for index, color in enumerate(colors):
        palette[:, index] = np.array(parse_color(color), np.uint16) * 257
    return palette
