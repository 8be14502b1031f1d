"""The pixels of a BINARY segmentation: one bit for each pixel and segment, tile by tile.

In a TILED_FULL file the first segment's tiles come first, row by row, then the second's (DICOM PS3.3
C.7.6.17.3).
Bands bring all segments of a row of tiles at once, so each tile goes to its place in a spool file. Tiles
without a segment are never written: the spool has holes there, which read as zeros.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels

TILE_PX = 256
# 8 pixels to a byte: frames begin at whole bytes, which not every viewer could do without
FRAME_BYTES = TILE_PX * TILE_PX // 8
# group, element, VR, two bytes reserved, length: DICOM PS3.5 table 7.1-1
PIXEL_DATA = struct.Struct("<HH2sHI")
COPY_BYTES = 1 << 20


class BitFrames:
    """The frames of all segments, in a spool file."""

    def __init__(self, folder: Path, m_size: tuple[int, int], numbers: NDArray[np.uint8]) -> None:
        """Begin with empty frames.

        Args:
            folder: Where the spool lies.
            m_size: Width and height of the labels.
            numbers: Segment of each class, 1 and above, `(256,)`; 0 for the background.
        """
        self._columns, self._rows = (-(-side // TILE_PX) for side in m_size)
        self._numbers = numbers
        self.count = self._columns * self._rows * int(numbers.max())
        self._row = 0
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix=".dicom-")  # noqa: SIM115

    @property
    def size(self) -> int:
        """How many bytes all frames have."""
        return self.count * FRAME_BYTES

    def put(self, block: Labels) -> None:
        """Take the next row of tiles, `(at most 256, width)`.

        Raises:
            OSError: The spool cannot be written.
        """
        for column in range(self._columns):
            tile = block[:, column * TILE_PX : (column + 1) * TILE_PX]
            for label in np.flatnonzero(np.bincount(tile.ravel(), minlength=256)):
                if number := int(self._numbers[label]):
                    index = ((number - 1) * self._rows + self._row) * self._columns + column
                    self._spool.seek(index * FRAME_BYTES)
                    self._spool.write(pack_tile(tile == label))
        self._row += 1

    def write(self, file: BinaryIO) -> None:
        """Write the element Pixel Data at the end of `file`.

        Raises:
            OSError: It cannot be written.
        """
        self._spool.truncate(self.size)
        self._spool.seek(0)
        file.write(PIXEL_DATA.pack(0x7FE0, 0x0010, b"OB", 0, self.size))
        shutil.copyfileobj(self._spool, file, COPY_BYTES)

    def drop(self) -> None:
        """Delete the spool."""
        self._spool.close()


def pack_tile(mask: NDArray[np.bool_]) -> bytes:
    """Return a tile's bits, first pixel in the lowest bit, zeros beyond the labels: DICOM PS3.5 8.1.1."""
    if mask.shape != (TILE_PX, TILE_PX):
        rows, columns = mask.shape
        mask = np.pad(mask, ((0, TILE_PX - rows), (0, TILE_PX - columns)))
    return np.packbits(mask, bitorder="little").tobytes()
