"""The JPEG tiles of a TIFF slide, decoded straight from the file.

OpenSlide spends four fifths of its time on pasting decoded tiles into a picture with a slow operator
(https://github.com/openslide/openslide/issues/719). Where a level is a plain grid of JPEG tiles, they are
decoded here with the colour space that OpenSlide would tell the same library, libjpeg-turbo: the pixels are
the same to the last bit. Everything else is left to OpenSlide: other compressions, absent tiles, damage.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Pixels

# Formats whose TIFF directories are whole levels, one tile beside the other.
PLAIN_VENDORS = ("generic-tiff", "aperio")
COLOR_SPACES = {2: "RGB", 6: "YCBCR"}
"""TIFF's photometric interpretation, and what libjpeg-turbo calls it."""
JPEG = 7
END_OF_IMAGE = b"\xff\xd9"
# A tile that claims to be longer is damaged.
MOST_BYTES_PER_PX, HEADER_BYTES = 8, 1 << 20
# What a hole in a copied file reads as. libjpeg-turbo only warns of most damage, where OpenSlide refuses it.
HOLES = (bytes(32), b"\xff" * 32)


@dataclass(frozen=True)
class JpegTiles:
    """One level: where its tiles lie in the file and how they are coded."""

    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: NDArray[np.int64]
    """`(rows, columns)` bytes from the file's begin."""
    lengths: NDArray[np.int64]
    """`(rows, columns)` bytes."""
    tables: bytes | None
    color_space: str

    def count_pixels(self, x: int, y: int, width: int, height: int) -> int:
        """Return the pixels that are decoded for a region."""
        rows, columns = self._find(x, y, width, height)
        return len(rows) * len(columns) * self.tile[0] * self.tile[1]

    def read(self, file: int, x: int, y: int, width: int, height: int) -> Pixels | None:
        """Return `(height, width, 3)` RGB of a region inside the level, or `None` if a tile is damaged.

        Args:
            file: A file descriptor; its position is neither used nor changed, so threads may share it.
            x: Left.
            y: Top.
            width: Columns.
            height: Rows.
        """
        region = np.empty((height, width, 3), np.uint8)
        tile = np.empty((self.tile[1], self.tile[0], 3), np.uint8)
        rows, columns = self._find(x, y, width, height)
        for row in rows:
            for column in columns:
                if not self._decode(file, row, column, tile):
                    return None
                self._paste(region, tile, column * self.tile[0] - x, row * self.tile[1] - y)
        return region

    def _find(self, x: int, y: int, width: int, height: int) -> tuple[range, range]:
        tile_width, tile_height = self.tile
        return (
            range(y // tile_height, -(-(y + height) // tile_height)),
            range(x // tile_width, -(-(x + width) // tile_width)),
        )

    def _decode(self, file: int, row: int, column: int, tile: Pixels) -> bool:
        """Fill `tile`, and tell whether all was well."""
        import imagecodecs

        try:
            data = os.pread(file, int(self.lengths[row, column]), int(self.offsets[row, column]))
            if not data.rstrip(b"\0").endswith(END_OF_IMAGE) or any(hole in data for hole in HOLES):
                return False
            imagecodecs.jpeg8_decode(
                data, tables=self.tables, colorspace=self.color_space, outcolorspace="RGB", out=tile
            )
        except (OSError, ValueError, imagecodecs.Jpeg8Error):  # ValueError: the tile has another size
            return False
        return True

    @staticmethod
    def _paste(region: Pixels, tile: Pixels, x: int, y: int) -> None:
        """Lay `tile` at (x, y) of `region`, of which it may hang over every side."""
        target = region[max(0, y) : y + len(tile), max(0, x) : x + tile.shape[1]]
        top, left = max(0, -y), max(0, -x)
        target[...] = tile[top : top + len(target), left : left + target.shape[1]]


def find_jpeg_tiles(
    path: Path, vendor: str | None, level_sizes: tuple[tuple[int, int], ...]
) -> tuple[JpegTiles | None, ...]:
    """Return the tiles of each level, `None` where OpenSlide must read it.

    Args:
        path: A slide that OpenSlide has opened.
        vendor: Its format, in OpenSlide's words.
        level_sizes: Width and height of each level.
    """
    import tifffile

    nothing = (None,) * len(level_sizes)
    if vendor not in PLAIN_VENDORS or not hasattr(os, "pread"):  # Windows has no pread
        return nothing
    try:
        with tifffile.TiffFile(path) as tif:
            pages = [page for page in tif.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
            return tuple(_match_page(pages, size) for size in level_sizes)
    except (tifffile.TiffFileError, OSError, ValueError, LookupError, ArithmeticError, struct.error):
        return nothing  # odd, but OpenSlide could open it


def _match_page(pages: list[Any], size: tuple[int, int]) -> JpegTiles | None:
    """Return the tiles of the one page of this size, if they are all there and plain."""
    matching = [page for page in pages if (page.imagewidth, page.imagelength) == size]
    if len(matching) != 1 or not _is_plain(matching[0]):
        return None
    page = matching[0]
    shape = (-(-size[1] // page.tilelength), -(-size[0] // page.tilewidth))
    offsets, lengths = (np.asarray(v, np.int64) for v in (page.dataoffsets, page.databytecounts))
    most = page.tilewidth * page.tilelength * MOST_BYTES_PER_PX + HEADER_BYTES
    if offsets.size != shape[0] * shape[1] or lengths.shape != offsets.shape:
        return None
    if lengths.min() <= 0 or lengths.max() > most:
        return None
    return JpegTiles(
        size=size,
        tile=(page.tilewidth, page.tilelength),
        offsets=offsets.reshape(shape),
        lengths=lengths.reshape(shape),
        tables=page.jpegtables,
        color_space=COLOR_SPACES[page.photometric],
    )


def _is_plain(page: Any) -> bool:
    return (
        page.compression == JPEG
        and page.photometric in COLOR_SPACES
        and (page.samplesperpixel, page.bitspersample, page.planarconfig) == (3, 8, 1)
        and page.imagedepth == 1
        and page.tiledepth == 1
    )
