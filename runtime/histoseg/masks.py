"""Pictures that mark a slide's pixels: masks as PNG, JPEG or TIFF, laid over the model's pixels.

A TIFF's tiles or strips are decoded as they are asked for, so that a mask of slide size costs no memory.
Other pictures are loaded whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.errors import HistosegError, TruthError
from histoseg.maskrows import DAMAGE, MAX_DECODED_BYTES, Footprint, MaskRows, fill_palette, find_greys
from histoseg.tiffmask import open_tiff

if TYPE_CHECKING:
    from histoseg.arrays import Pixels
    from histoseg.maskrows import Indices, Size, Values
    from histoseg.scale import Scale

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")
# Pillow's names, with the bytes of a pixel.
GREY_MODES = {"1": 1, "L": 1, "P": 1, "LA": 2, "I;16": 2, "I;16B": 2, "I;16L": 2, "I": 4}
COLOR_MODES = {"RGB": 3, "RGBA": 4}
# Rows of a picture that are copied together.
COPY_ROWS = 512
# Pixels that are read together, and what their values, colours and codes take until they are classes.
SLICE_PX, BYTES_PER_SLICE_PX = 1 << 20, 32


def open_mask(path: Path, what: str = "truth") -> MaskRows:
    """Open a mask.

    Args:
        path: TIFF, of a pyramid its first, finest page; or PNG, JPEG and what else Pillow reads, loaded
            whole. Such a picture keeps a byte a pixel, 3 for RGB, 2 and 4 for deeper ones, and needs two
            and a half times that while it loads.
        what: What messages call it.

    Raises:
        TruthError: The file is missing, no picture, damaged, or of a kind that is no mask.
    """
    if not path.is_file():
        raise TruthError(f"{path}: no such {what} mask")
    is_tiff = path.suffix.lower() in TIFF_SUFFIXES
    load: Callable[[Path, str], MaskRows] = open_tiff if is_tiff else _load_picture
    try:
        return load(path, what)
    except HistosegError:
        raise
    except DAMAGE as error:
        kind = "TIFF" if is_tiff else "picture"
        raise TruthError(f"{path}: cannot be read as a {kind} ({error}), expected a mask") from error


@dataclass(frozen=True)
class MaskFit:
    """Which mask pixel lies at the centre of each model pixel: of four that meet there, the lower right."""

    columns: Indices
    lines: Indices

    def read(self, rows: MaskRows, m_y: int, count: int, m_x0: int, m_x1: int) -> Values:
        """Return the values of `count` model rows from `m_y` on, between two columns.

        Returns:
            `(count, m_x1 - m_x0)`, or `(count, m_x1 - m_x0, 3)`.
        """
        return rows.read(self.lines[m_y : m_y + count], self.columns[m_x0:m_x1])


def cut_rows(count: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield first and end of slices of rows that hold few pixels: values take many times what they mean."""
    height = max(1, SLICE_PX // max(1, width))
    for top in range(0, count, height):
        yield top, min(count, top + height)


def fit_mask(path: Path, size: Size, scale: Scale, l0_size: Size, what: str = "truth") -> MaskFit:
    """Lay a mask over the slide's model pixels, of which it is any whole-number scale, or of level 0.

    Pixels are paired by that number, never by the quotient of the sizes: a slide that ends within a model
    pixel would shift the mask by up to one.

    Args:
        path: For messages.
        size: Width and height of the mask.
        scale: How the model's pixels lie on the slide.
        l0_size: Width and height of the slide at level 0.
        what: What messages call the mask.

    Raises:
        TruthError: The mask's size is no whole multiple or fraction of the slide's.
    """
    frames = {scale.m_size: (1.0, 1.0)}
    frames.setdefault(l0_size, scale.l0_per_m)
    # a size that is met exactly goes before one that is met up to a cut last pixel
    for frame in sorted(frames, key=lambda frame: frame != size):
        factor = find_factor(size, frame)
        if factor is not None:
            columns, lines = (
                _find_centers(count, per_m * factor, have)
                for count, per_m, have in zip(scale.m_size, frames[frame], size, strict=True)
            )
            return MaskFit(columns, lines)
    wanted = " or ".join(f"{width}x{height}" for width, height in frames)
    raise TruthError(
        f"{path}: the {what} is {size[0]}x{size[1]} px, expected {wanted} px, or a whole multiple or "
        "fraction of that; give a mask of the whole slide"
    )


def find_factor(size: Size, other: Size) -> float | None:
    """Return how many pixels of one picture, along an axis, lie on one of another, which shows the same.

    A whole number or the inverse of one; `None` where the sizes say otherwise, up to a cut last pixel.
    """
    for small, large, power in ((size, other, -1), (other, size, 1)):
        longest = large.index(max(large))  # it tells the number best
        factor = max(1, round(large[longest] / small[longest]))
        if all(abs(a * factor - b) < factor for a, b in zip(small, large, strict=True)):
            return float(factor) ** power
    return None


def _find_centers(count: int, step: float, have: int) -> Indices:
    return np.minimum(((np.arange(count) + 0.5) * step).astype(np.intp), have - 1)


@dataclass(frozen=True)
class _PictureRows:
    """A picture that was loaded whole."""

    values: Values
    lossy: bool
    palette: Pixels | None

    @property
    def size(self) -> Size:
        return self.values.shape[1], self.values.shape[0]

    @property
    def channels(self) -> int:
        return 1 if self.values.ndim == 2 else 3

    @property
    def footprint(self) -> Footprint:
        return Footprint(self.values.nbytes)

    def read(self, lines: Indices, columns: Indices) -> Values:
        return np.take(self.values[lines], columns, axis=1)

    def close(self) -> None:
        pass


def _load_picture(path: Path, what: str) -> _PictureRows:
    from PIL import Image

    # a mask of slide size is no attack: the person at the keyboard named it
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture:
            _check_picture(path, picture, what)
            values, lossy = _copy_pixels(picture), picture.format in LOSSY_FORMATS
            colors = picture.getpalette("RGB") if picture.mode == "P" else None
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if colors is None:
        return _PictureRows(values, lossy, None)
    palette = np.array(colors, np.uint8).reshape(-1, 3)
    greys, palette = find_greys(palette), fill_palette(palette)
    return (
        _PictureRows(values, lossy, palette)
        if greys is None
        else _PictureRows(palette[values, 0], lossy, None)
    )


def _check_picture(path: Path, picture: Any, what: str) -> None:
    modes = GREY_MODES | COLOR_MODES
    if picture.mode not in modes:
        raise TruthError(
            f"{path}: the {what} is a picture of Pillow's mode {picture.mode}, expected class indices, a "
            "0/255 mask or RGB; write it again"
        )
    if picture.width * picture.height * modes[picture.mode] > MAX_DECODED_BYTES:
        raise TruthError(
            f"{path}: the {what} is {picture.width}x{picture.height} px and would be loaded whole, expected "
            f"at most {MAX_DECODED_BYTES >> 30} GiB; write it as a tiled TIFF"
        )


def _copy_pixels(picture: Any) -> Values:
    """Return values or RGB without alpha, copied in parts: Pillow builds each array twice."""
    width, height = picture.size
    first = np.asarray(picture.crop((0, 0, width, 1)))
    colors = (3,) if picture.mode in COLOR_MODES else ()
    values = np.empty((height, width, *colors), np.uint8 if first.dtype == np.bool_ else first.dtype)
    for top in range(0, height, COPY_ROWS):
        part = np.asarray(picture.crop((0, top, width, min(height, top + COPY_ROWS))))
        values[top : top + COPY_ROWS] = part[..., :3] if colors else part if part.ndim == 2 else part[..., 0]
    return values
