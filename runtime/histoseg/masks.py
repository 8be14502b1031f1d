"""Pictures that mark a slide's pixels: masks as PNG, JPEG or TIFF, read row by row.

A TIFF's tiles or strips are decoded as they are asked for, so that a mask of slide size costs no memory.
Other pictures are loaded whole: one byte a pixel, three for colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from histoseg.errors import TruthError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Pixels

    Size = tuple[int, int]
    Values = NDArray[np.uint8]

# A picture that is loaded whole may decode to this many bytes.
MAX_PICTURE_BYTES = 4 << 30
# JPEG in its TIFF forms, old and new, JPEG 2000 as Aperio and others number it, WebP, JPEG XL
LOSSY_TIFF = (6, 7, 33003, 33005, 34712, 50001, 50002)
MINISWHITE = 0
# Rows that are looked at together when a whole mask is scanned.
SCAN_ROWS = 256


class MaskRows(Protocol):
    """The values of a mask, row by row."""

    size: Size
    """Width and height."""
    channels: int
    """1, or 3 for colours."""
    lossy: bool
    """Values may differ a little from those that were drawn."""
    palette: Pixels | None
    """`(256, 3)` RGB of each value, where the picture has colours behind its values."""

    def read(self, top: int, bottom: int) -> Values:
        """Return rows `top` to `bottom`, `(rows, width)` or `(rows, width, 3)` uint8."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def open_mask(path: Path, what: str = "truth") -> MaskRows:
    """Open a mask.

    Args:
        path: PNG, JPEG or TIFF; of a pyramid its first, finest page.
        what: What messages call it.

    Raises:
        TruthError: The file is missing, no picture, damaged, or of a kind that is no mask.
    """
    if not path.is_file():
        raise TruthError(f"{path}: no such {what} mask")
    if path.suffix.lower() in (".tif", ".tiff"):
        return _open_tiff(path, what)
    return _load_picture(path, what)


@dataclass(frozen=True)
class MaskFit:
    """Which mask pixel lies at the centre of each model pixel."""

    columns: NDArray[np.intp]
    lines: NDArray[np.intp]

    def read(self, rows: MaskRows, m_y: int, count: int) -> Values:
        """Return the values of `count` model rows from `m_y` on, `(count, width)` or `(count, width, 3)`."""
        lines = self.lines[m_y : m_y + count]
        top, bottom = int(lines[0]), int(lines[-1]) + 1
        return rows.read(top, bottom)[lines - top][:, self.columns]


def fit_mask(path: Path, size: Size, m_size: Size, l0_size: Size | None, what: str = "truth") -> MaskFit:
    """Lay a mask over the slide's model pixels, of which it is any whole-number scale.

    Args:
        path: For messages.
        size: Width and height of the mask.
        m_size: Width and height of the slide in model pixels.
        l0_size: Width and height of the slide at level 0.
        what: What messages call the mask.

    Raises:
        TruthError: The mask's size is no whole multiple or fraction of the slide's.
    """
    sizes = [m_size] if l0_size is None or l0_size == m_size else [m_size, l0_size]
    if not any(is_whole_scale(size, other) for other in sizes):
        wanted = " or ".join(f"{width}x{height}" for width, height in sizes)
        raise TruthError(
            f"{path}: the {what} is {size[0]}x{size[1]} px, expected {wanted} px, or a whole multiple or "
            "fraction of that; give a mask of the whole slide"
        )
    return MaskFit(_nearest(size[0], m_size[0]), _nearest(size[1], m_size[1]))


def is_whole_scale(size: Size, other: Size) -> bool:
    """Tell whether one size is the other times a whole number, up to a cut last pixel."""
    for small, large in ((size, other), (other, size)):
        factor = max(1, round(large[0] / small[0]))
        if all(abs(a * factor - b) < factor for a, b in zip(small, large, strict=True)):
            return True
    return False


class _PictureRows:
    def __init__(self, values: Values, *, lossy: bool, palette: Pixels | None) -> None:
        self.size = (values.shape[1], values.shape[0])
        self.channels = 1 if values.ndim == 2 else 3
        self.lossy = lossy
        self.palette = palette
        self._values = values

    def read(self, top: int, bottom: int) -> Values:
        return self._values[top:bottom]

    def close(self) -> None:
        pass


class _TiffRows:
    """Rows of a TIFF's first page, decoded as they are asked for."""

    def __init__(self, tif: Any) -> None:
        self._page = page = tif.pages[0]
        self._file = tif.filehandle
        self.size = (page.imagewidth, page.imagelength)
        self.channels = 1 if page.samplesperpixel == 1 else 3
        self.lossy = int(page.compression) in LOSSY_TIFF
        self.palette = None if page.colormap is None else _as_palette(page.colormap)
        self._dtype = page.dtype
        self._inverted = int(page.photometric) == MINISWHITE
        self._height = page.tilelength if page.is_tiled else page.rowsperstrip
        self._across = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1

    def read(self, top: int, bottom: int) -> Values:
        shape = (bottom - top, self.size[0]) + ((3,) if self.channels == 3 else ())
        rows = np.zeros(shape, self._dtype)
        first, last = top // self._height, -(-bottom // self._height)
        for index in range(first * self._across, last * self._across):
            segment = self._decode(index)
            if segment is None:
                continue  # a tile left out of the file is background
            y, x = index // self._across * self._height, index % self._across * self._page.tilewidth
            y0, y1 = max(y, top), min(y + segment.shape[0], bottom)
            x1 = min(x + segment.shape[1], self.size[0])
            rows[y0 - top : y1 - top, x:x1] = segment[y0 - y : y1 - y, : x1 - x]
        return _narrow(rows)

    def close(self) -> None:
        self._file.close()

    def _decode(self, index: int) -> NDArray[Any] | None:
        count = self._page.databytecounts[index]
        if count == 0:
            return None
        decode, tables = self._page.decode, self._page.jpegtables  # both may move in the file
        self._file.seek(self._page.dataoffsets[index])
        segment, _, _ = decode(self._file.read(count), index, jpegtables=tables)
        if segment is None:
            return None
        values = np.asarray(segment[0, ..., :3] if self.channels == 3 else segment[0, ..., 0])
        if self._inverted:
            return ~values if values.dtype == np.bool_ else np.iinfo(values.dtype).max - values
        return values


def _open_tiff(path: Path, what: str) -> _TiffRows:
    import tifffile

    try:
        page = (tif := tifffile.TiffFile(path)).pages[0]
    except (tifffile.TiffFileError, ValueError, LookupError, ArithmeticError, TypeError) as error:
        raise TruthError(f"{path}: cannot be read as a TIFF ({error}), expected a mask") from error
    assert isinstance(page, tifffile.TiffPage)
    side = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
    if not all(isinstance(value, int) and value > 0 for value in (*side, *page.shape)):
        raise TruthError(f"{path}: is a damaged TIFF (sizes {side} and {page.shape}); write it again")
    _check_kind(path, page.samplesperpixel, page.dtype, what)
    if page.samplesperpixel > 1 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        raise TruthError(
            f"{path}: the {what} keeps its colours in separate planes, expected them side by side "
            "(PlanarConfiguration 1); write it again"
        )
    return _TiffRows(tif)


def _load_picture(path: Path, what: str) -> _PictureRows:
    from PIL import Image

    # a mask of slide size is no attack: the person at the keyboard named it
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture:
            _check_picture_size(path, picture, what)
            values, lossy = np.asarray(picture), picture.format in ("JPEG", "WEBP", "JPEG2000")
            colors = picture.getpalette("RGB") if picture.mode == "P" else None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, TruthError):
            raise
        raise TruthError(f"{path}: cannot be read as a picture ({error}), expected a mask") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    _check_kind(path, 1 if values.ndim == 2 else values.shape[2], values.dtype, what)
    palette = None if colors is None else _fill_palette(np.array(colors, np.uint8).reshape(-1, 3))
    values = _narrow(values if values.ndim == 2 else values[..., :3])
    return _PictureRows(values, lossy=lossy, palette=palette)


def _check_picture_size(path: Path, picture: Any, what: str) -> None:
    size = picture.width * picture.height * len(picture.getbands())
    if size > MAX_PICTURE_BYTES:
        raise TruthError(
            f"{path}: the {what} is {picture.width}x{picture.height} px and would be loaded whole, expected "
            f"at most {MAX_PICTURE_BYTES >> 30} GiB; write it as a tiled TIFF"
        )


def _check_kind(path: Path, channels: int, dtype: Any, what: str) -> None:
    if channels not in (1, 3, 4):
        raise TruthError(f"{path}: the {what} has {channels} channels, expected 1 (classes) or 3 (colours)")
    if dtype not in (np.uint8, np.bool_, np.uint16) or (channels > 1 and dtype != np.uint8):
        raise TruthError(f"{path}: the {what} is {dtype}, expected uint8 class indices, a 0/255 mask or RGB")


def _narrow(values: NDArray[Any]) -> Values:
    """Return values as uint8."""
    if values.dtype == np.uint16 and values.max(initial=0) > 255:
        raise TruthError(f"a mask holds the value {values.max()}, expected class indices up to 255")
    return values.astype(np.uint8, copy=False)


def _as_palette(colormap: NDArray[np.uint16]) -> Pixels:
    return _fill_palette((np.asarray(colormap).T >> 8).astype(np.uint8))


def _fill_palette(colors: Pixels) -> Pixels:
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors[:256]
    return palette


def _nearest(have: int, want: int) -> NDArray[np.intp]:
    centers = (np.arange(want) + 0.5) * have / want
    return np.minimum(centers.astype(np.intp), have - 1)
