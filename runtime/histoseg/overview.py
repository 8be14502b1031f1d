"""A picture of the whole slide, small enough to look at and to find tissue on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from histoseg.cancel import check_cancel

if TYPE_CHECKING:
    from histoseg.arrays import Pixels
    from histoseg.slide import Slide

# An overview is read in blocks of about this many pixels on a side, or fewer: 12 MB of RGB. Blocks that are
# much lower than a slide's tiles decode those over and over.
OVERVIEW_BLOCK_PX = 2048


def read_overview(slide: Slide, max_side_px: int, *, cancel: Event | None = None) -> Pixels:
    """Return the whole slide as RGB of at most `max_side_px` on its longer side, averaged over areas.

    Reads block by block from the coarsest sufficient level: memory stays fixed for a slide of one level.

    Raises:
        CancelledError: `cancel` was set.
        SlideError: The slide is damaged.
    """
    import cv2

    level = max(
        (i for i, size in enumerate(slide.level_sizes) if i == 0 or max(size) >= max_side_px), default=0
    )
    width, height = slide.level_sizes[level]
    factor = max(1.0, max(width, height) / max_side_px)
    out_w, out_h = max(1, int(width / factor)), max(1, int(height / factor))
    overview = np.empty((out_h, out_w, 3), np.uint8)
    for top, bottom, y0, y1 in _cut_axis(height, out_h):
        for left, right, x0, x1 in _cut_axis(width, out_w):
            check_cancel(cancel, "an overview of the slide was read")
            pixels = slide.read_level(level, x0, y0, x1 - x0, y1 - y0)
            overview[top:bottom, left:right] = cv2.resize(
                pixels, (right - left, bottom - top), interpolation=cv2.INTER_AREA
            )
    return overview


def _cut_axis(length: int, out_length: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut an axis into blocks of about one size: first and end output pixel, first and end level pixel."""
    count = min(out_length, -(-length // OVERVIEW_BLOCK_PX))
    edges = [index * out_length // count for index in range(count + 1)]
    for begin, end in pairwise(edges):
        yield begin, end, begin * length // out_length, end * length // out_length
