"""Drawn areas as the rows of a mask: which pixels have their centre inside.

A scan-line fill, even-odd over all rings of an area (Foley et al., Computer Graphics: Principles and
Practice), for all areas of a band at once. What a band costs grows with the corners that lie in it, not with
those of the file: rings are kept as chains of neighbouring corners, and those above or below are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histoseg.chains import find_begins, join_ranges
from histoseg.maskrows import Footprint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.annotations import Region
    from histoseg.arrays import Labels

    Numbers = NDArray[np.int64]
    Points = NDArray[np.float64]

# Corners of a ring that are passed over together.
CHAIN = 64
# What is worked on at a time: it bounds memory.
CORNERS, CROSSINGS, SPANS = 1 << 18, 1 << 18, 1 << 14
# Pixels of a layer from which areas are cut, and beside each what lay under it, and the cut.
CUT_PX, BYTES_PER_CUT_PX = 1 << 20, 2
# What finding the edges of a corner, and where they are crossed, takes.
BYTES_PER_CORNER, BYTES_PER_CROSSING = 128, 128
# Spans longer than this on average are painted faster one by one.
LONG_SPAN = 48


@dataclass(frozen=True)
class _Spans:
    """Runs of inside pixels, in the order in which they are painted."""

    rows: Numbers
    begins: Numbers
    ends: Numbers
    areas: Numbers


class Outlines:
    """Areas laid over the pixels of a mask; later ones lie over earlier ones.

    Areas that erase are cut out of the others of their layer, before and after them, and of no other layer:
    what lies under the layer shows there.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        values: Sequence[int],
        *,
        l0_per_m: tuple[float, float],
        m_size: tuple[int, int],
    ) -> None:
        """Lay out areas.

        Args:
            regions: At least one.
            values: What the pixels inside each region become; those of regions that erase count for nothing.
            l0_per_m: Level-0 pixels of one mask pixel, along x and y.
            m_size: Width and height of the mask.
        """
        rings = [ring for region in regions for ring in region.rings]
        sizes = np.array([len(ring) for ring in rings])
        ends = np.cumsum(sizes)
        self._points: Points = np.concatenate(rings) / l0_per_m
        self._next = np.arange(1, ends[-1] + 1)
        self._next[ends - 1] = ends - sizes
        area = np.repeat(np.arange(len(regions)), [len(region.rings) for region in regions])
        first = np.flatnonzero(np.diff(area, prepend=-1))
        begins = (ends - sizes)[first]
        self._lows = np.minimum.reduceat(self._points, begins)
        self._highs = np.maximum.reduceat(self._points, begins)
        self._cut_chains(ends - sizes, sizes, area)
        self._erases = np.array([region.erases for region in regions])
        layers = np.array([region.layer for region in regions])
        # layers that nothing is cut out of are painted together
        self._layers = np.where(np.isin(layers, layers[self._erases]), layers, -1)
        self._values = np.where(self._erases, 1, np.array(values)).astype(np.uint8)
        self._width, self._height = m_size

    def _cut_chains(self, begins: Numbers, sizes: Numbers, area: Numbers) -> None:
        counts = -(-sizes // CHAIN)
        self._chains = join_ranges(np.zeros_like(counts), counts) * CHAIN + np.repeat(begins, counts)
        self._owners = np.repeat(area, counts)
        self._sizes = np.diff(self._chains, append=len(self._points))
        y = self._points[:, 1]
        self._tops = np.minimum.reduceat(np.minimum(y, y[self._next]), self._chains)
        self._bottoms = np.maximum.reduceat(np.maximum(y, y[self._next]), self._chains)

    @property
    def footprint(self) -> Footprint:
        """What corners and chains take, and the work on a part of them."""
        corners, chains = (self._points, self._next), (self._chains, self._owners, self._sizes, self._tops)
        loaded = sum(array.nbytes for array in (*corners, *chains, self._bottoms))
        reading = min(len(self._points), CORNERS) * BYTES_PER_CORNER + CROSSINGS * BYTES_PER_CROSSING
        return Footprint(loaded, reading)

    @property
    def m_box(self) -> tuple[int, int, int, int]:
        """`(x0, y0, x1, y1)` around all areas, within the mask; empty where nothing lies on it."""
        size = (self._width, self._height)
        x0, y0 = np.clip(np.floor(self._lows.min(axis=0)), 0, size).astype(int).tolist()
        x1, y1 = np.clip(np.ceil(self._highs.max(axis=0)), 0, size).astype(int).tolist()
        return x0, y0, x1, y1

    def reach_mask(self) -> bool:
        """Tell whether the box around any area reaches into the mask."""
        size = (self._width, self._height)
        return bool(((self._highs > 0) & (self._lows < size)).all(axis=1).any())

    def read(
        self, m_y: int, count: int, m_x0: int = 0, m_x1: int | None = None, *, background: int = 0
    ) -> Labels:
        """Return `count` rows from `m_y` on, `(count, m_x1 - m_x0)` uint8.

        Args:
            m_y: First row.
            count: Number of rows.
            m_x0: First column.
            m_x1: End of the columns; that of the mask when `None`.
            background: The value outside of all areas.
        """
        m_x1 = self._width if m_x1 is None else m_x1
        rows = np.full((count, m_x1 - m_x0), background, np.uint8)
        chains = np.flatnonzero((self._tops < m_y + count) & (self._bottoms > m_y))
        beside = (self._lows[:, 0] >= m_x1) | (self._highs[:, 0] <= m_x0)
        chains = chains[~beside[self._owners[chains]]]
        layers = self._layers[self._owners[chains]]
        for group in np.split(chains, np.flatnonzero(np.diff(layers)) + 1):
            if self._erases[self._owners[group]].any():
                self._lay_with_cuts(rows, m_x0, m_y, group)
            else:
                self._lay(rows, m_x0, m_y, group)
        return rows

    def _lay_with_cuts(self, rows: Labels, m_x: int, m_y: int, chains: Numbers) -> None:
        """Lay a layer over rows, and show again what was there where areas are cut out of it."""
        erases = self._erases[self._owners[chains]]
        step = max(1, CUT_PX // max(1, rows.shape[1]))
        for top in range(0, len(rows), step):
            part = rows[top : top + step]
            under, cut = part.copy(), np.zeros_like(part)
            self._lay(part, m_x, m_y + top, chains[~erases])
            self._lay(cut, m_x, m_y + top, chains[erases])
            np.copyto(part, under, where=cut.view(np.bool_))

    def _lay(self, rows: Labels, m_x: int, m_y: int, chains: Numbers) -> None:
        for part in self._split(chains):
            self._paint(rows, m_x, m_y, part)

    def _split(self, chains: Numbers) -> Iterator[Numbers]:
        """Cut chains into parts of few corners, between areas."""
        first = np.flatnonzero(np.diff(self._owners[chains], prepend=-1))
        before = find_begins(self._sizes[chains])[first] // CORNERS
        for part in np.split(chains, first[1:][np.diff(before) > 0]):
            if len(part):
                yield part

    def _paint(self, rows: Labels, m_x: int, m_y: int, chains: Numbers) -> None:
        low, high, area = self._find_edges(chains)
        # an edge crosses the centre lines of these rows
        first, last = (np.clip(np.ceil(end[:, 1] - 0.5), m_y, m_y + len(rows)) for end in (low, high))
        counts = (last - first).astype(np.int64)
        if counts.sum() > CROSSINGS and len(rows) > 1:
            half = len(rows) // 2
            self._paint(rows[:half], m_x, m_y, chains)
            self._paint(rows[half:], m_x, m_y + half, chains)
            return
        edges = np.repeat(np.arange(len(counts)), counts)
        lines = join_ranges(first.astype(np.int64), counts)
        run, rise = (high[edges] - low[edges]).T
        x = low[edges, 0] + (lines + 0.5 - low[edges, 1]) * (run / rise)
        columns = np.clip(np.ceil(x - 0.5) - m_x, 0, rows.shape[1]).astype(np.int64)
        keys = (area[edges] * len(rows) + lines - m_y) * (rows.shape[1] + 1) + columns
        for spans in _iter_spans(np.sort(keys), rows.shape):
            _paint_spans(rows, spans, self._values[spans.areas])

    def _find_edges(self, chains: Numbers) -> tuple[Points, Points, Numbers]:
        """Return the upper and the lower end of every edge of some chains, and its area."""
        corners = join_ranges(self._chains[chains], self._sizes[chains])
        start, end = self._points[corners], self._points[self._next[corners]]
        # from top to bottom, so that two areas agree about an edge they share
        down = start[:, 1:] <= end[:, 1:]
        area = np.repeat(self._owners[chains], self._sizes[chains])
        return np.where(down, start, end), np.where(down, end, start), area


def _iter_spans(keys: Numbers, shape: tuple[int, ...]) -> Iterator[_Spans]:
    """Pair crossings, sorted by area, row and column; rings are closed, so a row has an even number."""
    count, width = shape
    for at in range(0, len(keys), 2 * SPANS):
        begins, ends = keys[at : at + 2 * SPANS : 2], keys[at + 1 : at + 2 * SPANS : 2]
        lines, x0 = np.divmod(begins, width + 1)
        areas, rows = np.divmod(lines, count)
        yield _Spans(rows, x0, ends % (width + 1), areas)


def _paint_spans(rows: Labels, spans: _Spans, values: Labels) -> None:
    lengths = spans.ends - spans.begins
    if lengths.mean() > LONG_SPAN:
        for row, begin, end, value in zip(spans.rows, spans.begins, spans.ends, values, strict=True):
            rows[row, begin:end] = value
        return
    pixels = join_ranges(spans.rows * rows.shape[1] + spans.begins, lengths)
    # of pixels that occur twice, NumPy keeps the last value
    rows.reshape(-1)[pixels] = np.repeat(values, lengths)
