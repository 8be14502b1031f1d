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


class OverviewBuilder:
    """An overview that is read from the top, as far as there are pixels, block by block.

    Reads the coarsest sufficient level: memory stays fixed for a slide of one level.
    """

    def __init__(self, slide: Slide, max_side_px: int, *, cancel: Event | None = None) -> None:
        """Plan a picture of at most `max_side_px` on its longer side; nothing is read yet."""
        self._slide = slide
        self._cancel = cancel
        sizes = enumerate(slide.level_sizes)
        self._level = max((i for i, size in sizes if i == 0 or max(size) >= max_side_px), default=0)
        self._width, self._height = slide.level_sizes[self._level]
        factor = max(1.0, max(self._width, self._height) / max_side_px)
        self._size = max(1, int(self._width / factor)), max(1, int(self._height / factor))
        self._strips = list(_cut_axis(self._height, self._size[1]))
        self._rgb: Pixels | None = None

    @property
    def floor(self) -> int:
        """No row of the level above this one will be read."""
        return self._strips[0][2] if self._strips else self._height

    def advance(self, level_y: int) -> None:
        """Read the blocks that end above row `level_y` of the level.

        Raises:
            CancelledError: `cancel` was set.
            SlideError: The slide is damaged.
        """
        while self._strips and self._strips[0][3] <= level_y:
            self._read(*self._strips[0])
            self._strips.pop(0)

    def finish(self) -> Pixels:
        """Read the rest and return `(height, width, 3)` RGB; see `advance`."""
        self.advance(self._height)
        assert self._rgb is not None
        return self._rgb

    def _read(self, top: int, bottom: int, y0: int, y1: int) -> None:
        import cv2

        width, height = self._size
        if self._rgb is None:
            self._rgb = np.empty((height, width, 3), np.uint8)
        for left, right, x0, x1 in _cut_axis(self._width, width):
            check_cancel(self._cancel, "an overview of the slide was read")
            pixels = self._slide.read_level(self._level, x0, y0, x1 - x0, y1 - y0)
            self._rgb[top:bottom, left:right] = cv2.resize(
                pixels, (right - left, bottom - top), interpolation=cv2.INTER_AREA
            )


def read_overview(slide: Slide, max_side_px: int, *, cancel: Event | None = None) -> Pixels:
    """Return the whole slide as RGB of at most `max_side_px` on its longer side, averaged over areas.

    Raises:
        CancelledError: `cancel` was set.
        SlideError: The slide is damaged.
    """
    return OverviewBuilder(slide, max_side_px, cancel=cancel).finish()


def _cut_axis(length: int, out_length: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut an axis into blocks of about one size: first and end output pixel, first and end level pixel."""
    count = min(out_length, -(-length // OVERVIEW_BLOCK_PX))
    edges = [index * out_length // count for index in range(count + 1)]
    for begin, end in pairwise(edges):
        yield begin, end, begin * length // out_length, end * length // out_length
