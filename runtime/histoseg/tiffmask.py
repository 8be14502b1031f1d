"""TIFF masks, decoded as their rows are asked for.

Holds one row of tiles, or one strip, at the model's columns, so that none is decoded twice for rows that are
asked for in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.errors import TruthError
from histoseg.maskrows import MAX_DECODED_BYTES, Footprint, fill_palette, find_greys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Pixels
    from histoseg.maskrows import Indices, Size, Values

# Numbers of TIFF 6.0 and libtiff. Grey, its inverse, palette indices and holes have one channel.
MINISWHITE, MINISBLACK, RGB, YCBCR = 0, 1, 2, 6
GREYS, COLORS = (MINISWHITE, MINISBLACK, 3, 4), (MINISBLACK, RGB, YCBCR)
# JPEG in its TIFF forms, old and new; JPEG 2000 as Aperio and others number it, WebP, JPEG XL
JPEGS, APERIO_YCBCR = (6, 7), 33003
LOSSY = (*JPEGS, APERIO_YCBCR, 33005, 34712, 50001, 50002)
# Of an uncompressed picture so many rows are read together, or fewer where they are long.
PLAIN_ROWS, PLAIN_BYTES = 256, 16 << 20


class TiffRows:
    """Rows of a TIFF's first page."""

    def __init__(self, tif: Any) -> None:
        """Take a file that `open_tiff` has found to be a mask."""
        self._page = page = tif.pages[0]
        self._file = tif.filehandle
        self.size: Size = (page.imagewidth, page.imagelength)
        self.channels = 1 if page.samplesperpixel == 1 else 3
        self.lossy = int(page.compression) in LOSSY
        palette = _read_palette(page)
        self._greys = None if palette is None else find_greys(palette)
        self.palette: Pixels | None = None if self._greys is not None else palette
        self._dtype = np.dtype(tif.byteorder + page.dtype.char)
        self._tile_size = _find_tile_size(page)
        self._held: tuple[int, Indices, Values] | None = None

    @property
    def footprint(self) -> Footprint:
        """What reading takes: a tile as it is decoded and as it is picked from, and a row of tiles."""
        width, height = self._tile_size
        decoded = width * height * self._page.samplesperpixel * self._dtype.itemsize
        return Footprint(0, 2 * decoded, height * self.channels * self._dtype.itemsize)

    def read(self, lines: Indices, columns: Indices) -> Values:
        """Return some lines and columns, both ascending: `(lines, columns)`, or `(lines, columns, 3)`."""
        height, parts = self._tile_size[1], []
        for row in range(int(lines[0]) // height, int(lines[-1]) // height + 1):
            begin, end = np.searchsorted(lines, (row * height, (row + 1) * height))
            if begin < end:
                parts.append(self._read_tiles(row, columns)[lines[begin:end] - row * height])
        values = np.concatenate(parts)
        return values if self._greys is None else self._greys[values]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_tiles(self, row: int, columns: Indices) -> Values:
        """Return one row of tiles, at some columns."""
        if self._held is None or self._held[0] != row or not np.array_equal(self._held[1], columns):
            self._held = None  # two of them need not fit
            self._held = (row, columns, self._decode_tiles(row, columns))
        return self._held[2]

    def _decode_tiles(self, row: int, columns: Indices) -> Values:
        width, height = self._tile_size
        rows = min(height, self.size[1] - row * height)
        # a tile that is left out of the file holds zeros
        values = np.zeros((rows, len(columns), self.channels)[: self.channels // 2 + 2], self._dtype)
        across = -(-self.size[0] // width)
        for index in range(across):
            x = index * width
            begin, end = np.searchsorted(columns, (x, x + width))
            tile = self._decode(row * across + index, rows) if begin < end else None
            if tile is not None:
                values[: len(tile), begin:end] = np.take(tile[:rows], columns[begin:end] - x, axis=1)
        return values

    def _decode(self, index: int, rows: int) -> Values | None:
        if self._page.is_final:
            return self._select(self._read_plain(index * self._tile_size[1], rows))
        count = self._page.databytecounts[index]
        if count == 0:
            return None
        with _plain_errors():
            decode, tables = self._page.decode, self._page.jpegtables  # both may move in the file
            self._file.seek(self._page.dataoffsets[index])
            tile, _, _ = decode(self._file.read(count), index, jpegtables=tables)
        return None if tile is None else self._select(tile[0])

    def _read_plain(self, top: int, rows: int) -> NDArray[Any]:
        """Read rows that lie in the file as they are."""
        shape = (rows, self.size[0], self._page.samplesperpixel)
        per_row = shape[1] * shape[2] * self._dtype.itemsize
        self._file.seek(self._page.dataoffsets[0] + top * per_row)
        return np.frombuffer(self._file.read(rows * per_row), self._dtype).reshape(shape)

    def _select(self, tile: NDArray[Any]) -> Values:
        values = tile[..., :3] if self.channels == 3 else tile[..., 0]
        if int(self._page.photometric) != MINISWHITE:
            return values
        return ~values if values.dtype == np.bool_ else (1 << self._page.bitspersample) - 1 - values


def open_tiff(path: Path, what: str) -> TiffRows:
    """Open a TIFF mask.

    Raises:
        TruthError: It is of a kind that is no mask.
        ValueError: It is damaged; tifffile raises others too.
    """
    import tifffile

    with _plain_errors():
        tif = tifffile.TiffFile(path)
        try:
            _check_page(path, tif, what)
            return TiffRows(tif)
        except BaseException:
            tif.close()
            raise


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise a `ValueError` for what tifffile calls damage; its own error is none in older releases."""
    import tifffile

    try:
        yield
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from error


def _check_page(path: Path, tif: Any, what: str) -> None:
    page = tif.pages[0]
    sides = _find_tile_size(page)
    if not all(isinstance(value, int) and value > 0 for value in (*sides, *page.shape)):
        raise TruthError(f"{path}: is a damaged TIFF (sizes {sides} and {page.shape}); write it again")
    if wrong := _find_fault(page):
        raise TruthError(f"{path}: the {what} {wrong}")
    if len(tif.pages) > 1 and tif.pages[1].shape == page.shape:
        raise TruthError(
            f"{path}: the {what} has {len(tif.pages)} pages of {page.imagewidth}x{page.imagelength} px, "
            "expected one; write the page that is meant as a file of its own"
        )
    height = min(sides[1], page.imagelength)
    if height * page.imagewidth * page.samplesperpixel * page.dtype.itemsize > MAX_DECODED_BYTES:
        raise TruthError(
            f"{path}: the {what} keeps {page.imagewidth}x{height} px in one piece, expected at most "
            f"{MAX_DECODED_BYTES >> 30} GiB; write it as a tiled TIFF"
        )


def _find_fault(page: Any) -> str | None:
    """Return what keeps a page from being a mask."""
    channels, dtype, photometric = page.samplesperpixel, page.dtype, int(page.photometric)
    if channels not in (1, 3, 4):
        return f"has {channels} channels, expected 1 (classes) or 3 (colours)"
    if dtype is None or dtype.kind not in "bui" or (channels > 1 and dtype != np.uint8):
        return f"is {dtype}, expected uint8 class indices, a 0/255 mask or RGB"
    if channels > 1 and int(page.planarconfig) != 1:
        return (
            "keeps its colours in separate planes, expected them side by side (PlanarConfiguration 1); "
            "write it again"
        )
    compression = int(page.compression)
    mixed = compression == APERIO_YCBCR or (photometric == YCBCR and compression not in JPEGS)
    if photometric not in (GREYS if channels == 1 else COLORS) or (channels > 1 and mixed):
        return (
            f"keeps its colours as {page.photometric.name}, expected RGB, grey or a palette; write it again"
        )
    return None


def _find_tile_size(page: Any) -> Size:
    """Return width and height of what is decoded at once."""
    if page.is_final:
        per_row = page.imagewidth * page.samplesperpixel * np.dtype(page.dtype or np.uint8).itemsize
        return page.imagewidth, max(1, min(PLAIN_ROWS, PLAIN_BYTES // max(1, per_row)))
    return (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)


def _read_palette(page: Any) -> Pixels | None:
    if page.colormap is None or page.dtype.itemsize > 1:
        return None
    return fill_palette((np.asarray(page.colormap).T >> 8).astype(np.uint8))
