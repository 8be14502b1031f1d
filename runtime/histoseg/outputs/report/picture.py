"""The slide's picture and what lies over it, as images that a page carries in itself.

Each class is a layer of its own: one colour whose opacity is the share of a pixel that the class covers. So a
page shows and hides classes by showing and hiding images, needs to read no pixel, and shows them without any
script. Layers have 16 steps of opacity, which four bits hold.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histoseg.colors import parse_color

if TYPE_CHECKING:
    from histoseg.arrays import Labels, Mask, Pixels

LONG_SIDE_PX = 1600
MASK_SIDE_PX = 480
JPEG_QUALITY = 85
STEPS = 16


@dataclass(frozen=True)
class Glance:
    """A run at a size to look at: the slide, and over the same area what was found on it."""

    rgb: Pixels
    """`(height, width, 3)` uint8."""
    labels: Labels
    """`(height, width)` uint8: the most frequent class of each cell, the background aside. Its size may
    differ from that of `rgb`."""
    shares: Labels
    """Like `labels`: how much of the cell that class covers, 0 to 255."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a page's picture."""
        height, width = self.labels.shape
        factor = max(1.0, max(width, height) / LONG_SIDE_PX)
        return max(1, round(width / factor)), max(1, round(height / factor))


def encode_slide(glance: Glance) -> bytes:
    """Return the slide as a JPEG of `glance.size`."""
    return encode_jpeg(_shrink(glance.rgb, glance.size))


def encode_classes(glance: Glance, colors: tuple[str, ...], background: int) -> dict[int, bytes]:
    """Return a PNG of `glance.size` for each class that is anywhere on the picture, by its index.

    Args:
        glance: What was found.
        colors: `#rrggbb` of each class.
        background: The class that is not drawn.
    """
    present = np.unique(glance.labels[glance.shares > 0]).tolist()
    return {
        index: encode_layer(_cover(glance, index), colors[index]) for index in present if index != background
    }


def encode_outside(mask: Mask, size: tuple[int, int], color: str) -> bytes:
    """Return a PNG of `size` (width, height) that covers what lies outside a mask."""
    return encode_layer(_fit(np.where(mask, np.uint8(0), np.uint8(255)), size), color)


def encode_mask(mask: Mask, color: str) -> tuple[tuple[int, int], bytes]:
    """Return a small PNG of a mask, and its width and height."""
    height, width = mask.shape
    factor = max(1.0, max(width, height) / MASK_SIDE_PX)
    size = max(1, round(width / factor)), max(1, round(height / factor))
    return size, encode_layer(_shrink(mask.astype(np.uint8) * np.uint8(255), size), color)


def encode_layer(cover: Labels, color: str) -> bytes:
    """Return a PNG of one colour whose opacity is `cover`, `(height, width)` uint8, in 16 steps."""
    from PIL import Image

    image = Image.fromarray(((cover.astype(np.uint16) * (STEPS - 1) + 127) // 255).astype(np.uint8)).convert(
        "P"
    )
    image.putpalette(parse_color(color) * STEPS)
    file = io.BytesIO()
    opacities = bytes(step * 255 // (STEPS - 1) for step in range(STEPS))
    image.save(file, "PNG", bits=4, transparency=opacities, compress_level=6)
    return file.getvalue()


def encode_jpeg(rgb: Pixels) -> bytes:
    """Return `(height, width, 3)` uint8 as a JPEG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()


def _cover(glance: Glance, index: int) -> Labels:
    return _shrink(np.where(glance.labels == index, glance.shares, np.uint8(0)), glance.size)


def _shrink(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    import cv2

    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _fit(mask: Labels, size: tuple[int, int]) -> Labels:
    """Bring a mask, which may be coarser than the picture, to its size."""
    import cv2

    coarser = mask.shape[1] < size[0]
    return np.asarray(
        cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR if coarser else cv2.INTER_AREA), np.uint8
    )
