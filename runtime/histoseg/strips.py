"""Pixels of a slide that is still being scanned: strips of rows that come into being and are forgotten.

The first pixel that is written to a place stays; what is written there later is ignored. Knows no threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from histoseg.arrays import Mask, Pixels

Region = tuple[int, int, int, int]
"""`(x0, y0, x1, y1)`."""

STRIP_ROWS = 256
# Glass: what a place shows where no pixel ever came.
GAP = 255


class Strip:
    """Some rows over the slide's whole width, and which of their pixels have come."""

    def __init__(self, rows: int, width: int) -> None:
        """Begin without a pixel."""
        self.rgb: Pixels = np.empty((rows, width, 3), np.uint8)
        self._come: Mask | None = np.zeros((rows, width), np.bool_)
        self.missing = rows * width

    @property
    def held_bytes(self) -> int:
        """Memory of the pixels, and of the mask until all have come."""
        return self.rgb.nbytes + (0 if self._come is None else self._come.nbytes)

    def write(self, x: int, row: int, rgb: Pixels) -> None:
        """Take pixels, but those that have come before."""
        if self._come is None:
            return
        place = slice(row, row + rgb.shape[0]), slice(x, x + rgb.shape[1])
        fresh = ~self._come[place]
        count = int(np.count_nonzero(fresh))
        if count == fresh.size:
            self.rgb[place] = rgb
        elif count:
            np.copyto(self.rgb[place], rgb, where=fresh[..., None])
        self._come[place] = True
        self._settle(count)

    def fill(self) -> None:
        """Make what has not come a gap."""
        if self._come is not None:
            self.rgb[~self._come] = GAP
            self._settle(self.missing)

    def has(self, x0: int, row0: int, x1: int, row1: int) -> bool:
        """Return whether all of a region has come."""
        if self._come is None:
            return True
        # scanners come from above: the last row is what most often is not there
        return bool(self._come[row1 - 1, x0:x1].all() and self._come[row0:row1, x0:x1].all())

    def _settle(self, count: int) -> None:
        self.missing -= count
        if not self.missing:
            self._come = None


class StripStore:
    """The strips of one slide, as many as are needed at a time. Not safe from several threads."""

    def __init__(self, width: int, height: int) -> None:
        """Begin with nothing held."""
        self.width, self.height = width, height
        self.floor = 0
        """Rows above it are forgotten."""
        self.held_bytes = 0
        self._strips: dict[int, Strip] = {}

    def cut(self, y: int, rgb: Pixels) -> Iterator[tuple[int, Pixels]]:
        """Yield first row and pixels of the parts of `rgb` that lie in one strip each."""
        for index in range(y // STRIP_ROWS, (y + len(rgb) - 1) // STRIP_ROWS + 1):
            top, bottom = self._rows(index)
            begin, end = max(top, y), min(bottom, y + len(rgb))
            yield begin, rgb[begin - y : end - y]

    def count_new_bytes(self, y: int) -> int:
        """Return the memory that writing to row `y` would take on top: 0 where its strip is there."""
        index = y // STRIP_ROWS
        top, bottom = self._rows(index)
        forgotten = bottom <= self.floor
        return 0 if forgotten or index in self._strips else (bottom - top) * self.width * 4

    def write(self, x: int, y: int, rgb: Pixels) -> None:
        """Take pixels of one strip; those of forgotten rows are nobody's any more."""
        index = y // STRIP_ROWS
        top, bottom = self._rows(index)
        if bottom <= self.floor:
            return
        strip = self._strips.get(index)
        if strip is None:
            strip = self._strips[index] = Strip(bottom - top, self.width)
            self.held_bytes += strip.held_bytes
        self.held_bytes -= strip.held_bytes
        strip.write(x, y - top, rgb)
        self.held_bytes += strip.held_bytes

    def has(self, region: Region) -> bool:
        """Return whether all of a region has come."""
        x0, y0, x1, y1 = region
        for index in range((y1 - 1) // STRIP_ROWS, y0 // STRIP_ROWS - 1, -1):
            top, bottom = self._rows(index)
            strip = self._strips.get(index)
            if strip is None or not strip.has(x0, max(y0, top) - top, x1, min(y1, bottom) - top):
                return False
        return True

    def view(self, region: Region) -> list[Pixels | None]:
        """Return a region as views of its strips, from top to bottom; `None` for a strip that never came."""
        x0, y0, x1, y1 = region
        views: list[Pixels | None] = []
        for index in range(y0 // STRIP_ROWS, (y1 - 1) // STRIP_ROWS + 1):
            top, bottom = self._rows(index)
            strip = self._strips.get(index)
            views.append(strip.rgb[max(y0, top) - top : min(y1, bottom) - top, x0:x1] if strip else None)
        return views

    def count_held_bytes(self, row: int) -> int:
        """Return the memory of the strips that begin at row `row` or below."""
        held = (strip for index, strip in self._strips.items() if index * STRIP_ROWS >= row)
        return sum(strip.held_bytes for strip in held)

    def forget(self, row: int) -> None:
        """Forget the rows above `row`, as far as whole strips are."""
        self.floor = max(self.floor, row)
        for index in [index for index in self._strips if self._rows(index)[1] <= self.floor]:
            self.held_bytes -= self._strips.pop(index).held_bytes

    def fill(self) -> int:
        """Make all that has not come a gap, and return how many pixels of rows not forgotten that are."""
        gap_px = 0
        for index in range(self.floor // STRIP_ROWS, -(-self.height // STRIP_ROWS)):
            top, bottom = self._rows(index)
            if bottom <= self.floor:
                continue
            strip = self._strips.get(index)
            gap_px += strip.missing if strip else (bottom - top) * self.width
            if strip:
                self.held_bytes -= strip.held_bytes
                strip.fill()
                self.held_bytes += strip.held_bytes
        return gap_px

    def _rows(self, index: int) -> tuple[int, int]:
        return index * STRIP_ROWS, min(self.height, (index + 1) * STRIP_ROWS)


def join_views(views: list[Pixels | None], region: Region) -> Pixels:
    """Return a region as one array of its own, `(height, width, 3)`; what never came is a gap."""
    x0, y0, x1, y1 = region
    pixels = np.full((y1 - y0, x1 - x0, 3), GAP, np.uint8)
    top = 0
    for index, view in enumerate(views):
        rows = min(y1, (y0 // STRIP_ROWS + index + 1) * STRIP_ROWS) - y0 - top
        if view is not None:
            pixels[top : top + rows] = view
        top += rows
    return pixels
