"""A slide file: any format that OpenSlide reads.

Frames: `l0_` level-0 pixels from the slide's top left corner (its bounds, where the file states them),
`level_` pixels of one pyramid level.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from histoseg.colors import parse_color
from histoseg.errors import SlideError
from histoseg.icc import read_profile
from histoseg.jpegtiles import find_jpeg_tiles
from histoseg.slidehandle import SlideHandle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histoseg.arrays import Pixels
    from histoseg.card import ColorSpace

# Where a level's downsample is fractional, OpenSlide reads it in blocks of this size from its corner on.
BLOCK_PX = 512
# A region for which more than this many times its pixels would be decoded is left to OpenSlide and its cache.
MOST_DECODED = 4
# No microscope's pixels are this coarse. Printers' and screens' 300, 96 and 72 dots per inch are (85, 265 and
# 353 um), and so is 1 per inch or centimetre: what a TIFF says that nobody gave a um/px.
PRINT_UM_PX = 80
# The least RGBA, as a little-endian number, that is not transparent.
OPAQUE = 0xFF000000


class FileSlide:
    """A slide file that OpenSlide reads. One object serves many threads, and processes forked from this."""

    def __init__(self, path: Path, *, color_space: ColorSpace = "device") -> None:
        """Open `path`.

        Raises:
            SlideError: The file is missing, no format that OpenSlide reads, or its ICC profile, which
                `color_space` asks for, cannot be used.
        """
        self.name = path.stem
        self.path = path
        self.color_space = color_space
        self._handle = SlideHandle(path)
        with self._handle.use() as (openslide, _):
            properties = openslide.properties
            self._origin = _read_bounds_origin(properties)
            self._downsamples = tuple(openslide.level_downsamples)
            self.level_sizes = _read_level_sizes(openslide)
            self.spacing_um_px = _read_spacing(properties)
            background = properties.get("openslide.background-color", "ffffff")
            vendor = properties.get("openslide.vendor")
            self.color_profile, self._to_srgb = read_profile(openslide, path, convert=color_space == "sRGB")
            """Name of the slide's ICC profile; `None` where it has none, and counts as sRGB."""
        self._background = np.array(parse_color(background), np.uint8)
        self._tiles = find_jpeg_tiles(path, vendor, self.level_sizes)

    def __enter__(self) -> Self:
        """Return the slide itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file once nobody reads it any more; reading afterwards is an error."""
        self._handle.close()

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return `(height, width, 3)` RGB, transparency laid over the slide's background colour.

        Raises:
            SlideError: The file is damaged here.
        """
        rgb = self._read_tiles(level, x, y, width, height)
        if rgb is not None:
            return self._to_srgb.convert(rgb) if self._to_srgb else rgb
        if self._downsamples[level].is_integer():
            return self._read_openslide(level, x, y, width, height)
        # OpenSlide takes level-0 coordinates. At a fractional downsample it interpolates, by an amount that
        # depends on where the region begins: so regions begin at the same places for every reader.
        pixels = np.empty((height, width, 3), np.uint8)
        for top in range(y - y % BLOCK_PX, y + height, BLOCK_PX):
            for left in range(x - x % BLOCK_PX, x + width, BLOCK_PX):
                x0, x1 = max(left, x), min(left + BLOCK_PX, x + width)
                y0, y1 = max(top, y), min(top + BLOCK_PX, y + height)
                block = self._read_openslide(level, left, top, x1 - left, y1 - top)
                pixels[y0 - y : y1 - y, x0 - x : x1 - x] = block[y0 - top :, x0 - left :]
        return pixels

    def _read_tiles(self, level: int, x: int, y: int, width: int, height: int) -> Pixels | None:
        tiles = self._tiles[level]
        if tiles is None:
            return None
        # a fractional downsample has one reader for all regions: OpenSlide's pixels are shifted there
        wasteful = tiles.count_pixels(x, y, width, height) > MOST_DECODED * width * height
        if wasteful and self._downsamples[level].is_integer():
            return None
        with self._handle.use() as (_, descriptor):
            return tiles.read(descriptor, x, y, width, height)

    def _read_openslide(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        import openslide

        downsample = self._downsamples[level]
        l0_corner = tuple(round(v * downsample) + o for v, o in zip((x, y), self._origin, strict=True))
        with self._handle.use() as (handle, _):
            try:
                rgba = np.asarray(handle.read_region(l0_corner, level, (width, height)))
            except (openslide.OpenSlideError, OSError, ValueError) as error:
                raise SlideError(
                    f"{self.path}: cannot read {width}x{height} px at ({x}, {y}) of level {level} ({error}); "
                    "the file is damaged: copy it again from the scanner"
                ) from error
        return self._flatten(rgba)

    def _flatten(self, rgba: Pixels) -> Pixels:
        """Convert colours, then lay them over the background, which is no pixel of the scanner's."""
        import cv2

        rgb: Pixels = np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), np.uint8)
        if self._to_srgb:
            rgb = self._to_srgb.convert(rgb)
        if rgba.view("<u4").min(initial=OPAQUE) >= OPAQUE:
            return rgb
        weight = rgba[..., 3:].astype(np.float32) / 255
        return np.rint(rgb * weight + self._background * (1 - weight)).astype(np.uint8)


def _read_level_sizes(handle: Any) -> tuple[tuple[int, int], ...]:
    """Return level sizes cut to the slide's bounds, where the file states them."""
    properties = handle.properties
    full = handle.level_dimensions[0]
    width = min(int(properties.get("openslide.bounds-width", full[0])), full[0])
    height = min(int(properties.get("openslide.bounds-height", full[1])), full[1])
    if (width, height) == full:
        return tuple(handle.level_dimensions)
    return tuple((max(1, int(width / ds)), max(1, int(height / ds))) for ds in handle.level_downsamples)


def _read_bounds_origin(properties: Mapping[str, str]) -> tuple[int, int]:
    return int(properties.get("openslide.bounds-x", 0)), int(properties.get("openslide.bounds-y", 0))


def _read_spacing(properties: Mapping[str, str]) -> tuple[float, float] | None:
    try:
        x, y = float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"])
    except (KeyError, ValueError):
        return None
    if properties.get("openslide.vendor") == "generic-tiff" and max(x, y) > PRINT_UM_PX:
        return None
    return (x, y) if x > 0 and y > 0 and math.isfinite(x + y) else None
