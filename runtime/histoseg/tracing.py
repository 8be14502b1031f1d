"""Regions of labels as polygons along the edges of pixels, traced block by block.

A block's edges are found at once and linked to chains; what goes on below waits as an open chain for the next
block. Memory follows the open regions: their outlines so far, and the holes in them. A region is handed on
with the block in which its last row lies; one of too many edges is cut along a row, into pieces that meet.

The idea is that of following the borders of regions (Suzuki and Abe, Computer Vision, Graphics, and Image
Processing 30, 1985), over edges sorted by columns instead of pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from histoseg.chains import Chains, find_begins, follow, join_ranges
from histoseg.edges import Edges, find_edges
from histoseg.rings import Polygons, Rings, join_rings, make_polygons

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels, Mask

    Numbers = NDArray[np.int64]
    Points = NDArray[np.int32]

# Keys of corners, from high to low bits: column, side, row, upper or lower, link.
_LINK_BITS, _ROW_BITS = 26, 14
_LINKS, _ROWS = 1 << _LINK_BITS, 1 << _ROW_BITS
MAX_BLOCK_ROWS = _ROWS - 2
# Tissue around all the nuclei of a slide would be one polygon of millions of corners, all of them held until
# its end: no viewer could show it either.
MAX_EDGES = 1 << 17


@dataclass(frozen=True)
class _Links:
    """What chains are made of: chains open from above first, then the edges of a block."""

    open_count: int
    row: Numbers
    start: Numbers
    end: Numbers
    from_below: Mask
    to_below: Mask
    values: Labels
    begins: Numbers
    """First point of each link, among `points`."""
    sizes: Numbers
    points: Points


class RegionTracer:
    """Traces labels that come from top to bottom."""

    def __init__(self, width: int, background: int, *, max_edges: int = MAX_EDGES) -> None:
        """Begin above the first row.

        Args:
            width: Columns of the labels.
            background: The class that makes no regions.
            max_edges: A region of more edges is cut below the block that it reaches.
        """
        self._background = background
        self._m_y = 0
        self._above = np.full((1, width + 1), background, np.uint8)
        self._open = Rings(
            np.zeros((0, 2), np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8)
        )
        self._starts = np.zeros(0, np.int64)
        self._holes: dict[int, list[Rings]] = {}
        self._max_edges = max_edges
        self.cut_count = 0
        """Times that a region was cut."""

    def add(self, labels: Labels) -> list[Polygons]:
        """Take the next rows, `(rows, width)`, and return the regions that end in them, and what is cut."""
        assert len(labels) <= MAX_BLOCK_ROWS, f"{len(labels)} rows, expected at most {MAX_BLOCK_ROWS}"
        block = np.full((len(labels) + 1, self._above.shape[1]), self._background, np.uint8)
        block[0], block[1:, :-1] = self._above, labels
        polygons = [self._trace(block)]
        self._above = block[-1:].copy()
        self._m_y += len(labels)
        large = self._find_large()
        return [*polygons, self._cut(large)] if len(large) else polygons

    def close(self) -> list[Polygons]:
        """Return the regions that reach the last row."""
        return self.add(np.full((1, self._above.shape[1] - 1), self._background, np.uint8))

    def _find_large(self) -> Numbers:
        """Return the open regions that have too many edges so far."""
        owners = self._open.owners
        edges = np.bincount(owners, self._open.sizes, minlength=max(self._holes, default=0) + 1)
        for region, parts in self._holes.items():
            edges[region] += sum(len(part.points) for part in parts)
        return np.flatnonzero(edges > self._max_edges)

    def _cut(self, regions: Numbers) -> Polygons:
        """End regions with the last row; what lies below them begins anew."""
        cut = np.isin(self._open.owners, regions)
        lasts = np.cumsum(self._open.sizes)[cut] - 1
        # from left to right, every left side is that of a run of pixels, and the next right side too
        begins, ends = np.sort(self._starts[cut]), np.sort(self._open.points[lasts, 0])
        row = self._above.copy()
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            row[0, begin:end] = self._background
        polygons = self._trace(np.concatenate([self._above, row]))
        self._above = row
        self.cut_count += len(regions)
        return polygons

    def _trace(self, block: Labels) -> Polygons:
        links = self._gather_links(find_edges(block, self._background))
        sides = _sort_corners(links)
        chains = follow(_join_sides(sides, len(links.row)))
        regions = self._unite_chains(links, chains, _find_beside(block, links, sides))
        rings = _gather_rings(links, chains, regions)
        return self._hand_on(rings, links.start[chains.heads], chains.open_count)

    def _gather_links(self, edges: Edges) -> _Links:
        waiting, count = self._open, len(edges.row)
        row, below = np.zeros_like(self._starts), np.ones(len(self._starts), np.bool_)
        ends = np.cumsum(waiting.sizes)
        points = np.stack([edges.end, edges.row + self._m_y], axis=1).astype(np.int32)
        return _Links(
            len(row),
            np.concatenate([row, edges.row + 1]),
            np.concatenate([self._starts, edges.start]),
            np.concatenate([waiting.points[ends - 1, 0], edges.end]),
            np.concatenate([below, edges.from_below]),
            np.concatenate([below, edges.to_below]),
            np.concatenate([waiting.values, edges.values]),
            np.concatenate([ends - waiting.sizes, len(waiting.points) + np.arange(count)]),
            np.concatenate([waiting.sizes, np.ones(count, np.int64)]),
            np.concatenate([waiting.points, points]),
        )

    def _unite_chains(self, links: _Links, chains: Chains, beside: tuple[Numbers, Numbers]) -> Numbers:
        """Return a number for the region of each chain; its open chains share one with its holes so far."""
        waiting = chains.chain[: links.open_count]
        # chains that waited as one region stay one
        _, first, region = np.unique(self._open.owners, return_index=True, return_inverse=True)
        regions = _unite(
            len(chains.sizes),
            np.concatenate([waiting, chains.chain[beside[0]]]),
            np.concatenate([waiting[first][region], chains.chain[beside[1]]]),
        )
        holes: dict[int, list[Rings]] = {}
        for old, index in zip(self._open.owners[first].tolist(), first.tolist(), strict=True):
            if old in self._holes:
                holes.setdefault(int(regions[waiting[index]]), []).extend(self._holes[old])
        self._holes = holes
        return regions

    def _hand_on(self, rings: Rings, starts: Numbers, open_count: int) -> Polygons:
        """Keep open chains, and the holes of their regions; return the regions that are complete."""
        is_open = np.arange(len(rings.sizes)) < open_count
        in_open = np.zeros(len(rings.sizes), np.bool_)
        in_open[rings.owners[:open_count]] = True
        waits = in_open[rings.owners]
        self._open, self._starts = _select_rings(rings, is_open), starts[:open_count]
        complete = [_select_rings(rings, ~waits)]
        for region in [region for region in self._holes if not in_open[region]]:
            complete += [_own_rings(part, region) for part in self._holes.pop(region)]
        for part in _split_by_owner(_select_rings(rings, waits & ~is_open)):
            self._holes.setdefault(int(part.owners[0]), []).append(part)
        return make_polygons(join_rings(complete))


def _sort_corners(links: _Links) -> Numbers:
    """Return keys of both corners of every link, sorted: each upper one is followed by the lower one.

    An outline goes down right sides, from the end of a link to the start of the next, and up left sides.
    """
    link = np.arange(len(links.row))
    starts = _pack(links.start, ~links.from_below, links.row, links.from_below, link)
    ends = _pack(links.end, links.to_below, links.row, links.to_below, link)
    return np.sort(np.concatenate([starts, ends]))


def _pack(column: Numbers, right: Mask, row: Numbers, upper: Mask, link: Numbers | int) -> Numbers:
    side = (column << 1 | right) << _ROW_BITS | row
    return (side << 1 | upper) << _LINK_BITS | link


def _join_sides(corners: Numbers, count: int) -> Numbers:
    """Return the link after each link, -1 where it goes on below the block."""
    link, head = corners & (_LINKS - 1), corners >> _LINK_BITS
    side = head >> (_ROW_BITS + 1)
    # only a corner whose side goes on below the block has no partner: the last of its column and side
    upper = np.flatnonzero((head[:-1] & 1 == 1) & (side[1:] == side[:-1]))
    above, below, right = link[upper], link[upper + 1], side[upper] & 1 == 1
    after = np.full(count, -1)
    after[above[right]] = below[right]
    after[below[~right]] = above[~right]
    return after


def _find_beside(block: Labels, links: _Links, corners: Numbers) -> tuple[Numbers, Numbers]:
    """Return the edges under which pixels of other classes begin, and links of the same regions beside them.

    Such an edge may be the top of a hole. The pixels to its left belong to the region around it, and further
    to the left so does the side where these begin: of another hole, or of the region itself.
    """
    tops = np.flatnonzero(links.from_below & links.to_below & (links.start > links.end))
    tops = tops[tops >= links.open_count]
    if not len(tops):
        return tops, tops
    stride = block.shape[1]
    pixels = block[1:].reshape(-1)
    begins = np.append(0, np.flatnonzero(pixels[1:] != pixels[:-1]) + 1)
    row = links.row[tops] - 1
    last = row * stride + links.end[tops] - 1
    run = np.searchsorted(begins, last, side="right") - 1
    column = begins[run] - row * stride
    nothing, upper = np.zeros(len(tops), np.bool_), np.ones(len(tops), np.bool_)
    keys = _pack(column, nothing, links.row[tops], upper, _LINKS - 1)
    found = corners[np.searchsorted(corners, keys, side="right") - 1]
    return tops, found & (_LINKS - 1)


def _unite(count: int, some: Numbers, others: Numbers) -> Numbers:
    """Return for each of `count` things the number of one of those that pairs connect it with."""
    parents = list(range(count))
    differ = some != others
    for a, b in zip(some[differ].tolist(), others[differ].tolist(), strict=True):
        root_a, root_b = a, b
        while parents[root_a] != root_a:
            parents[root_a] = root_a = parents[parents[root_a]]
        while parents[root_b] != root_b:
            parents[root_b] = root_b = parents[parents[root_b]]
        parents[max(root_a, root_b)] = min(root_a, root_b)
    roots = np.array(parents, np.int64)
    while not np.array_equal(roots, roots[roots]):
        roots = roots[roots]
    return roots


def _gather_rings(links: _Links, chains: Chains, regions: Numbers) -> Rings:
    sizes = links.sizes[chains.order]
    points = links.points[join_ranges(links.begins[chains.order], sizes)]
    if not len(chains.sizes):
        return Rings(points, chains.sizes, regions, links.values[:0])
    lengths = np.add.reduceat(sizes, find_begins(chains.sizes))
    return Rings(points, lengths, regions, links.values[chains.heads])


def _select_rings(rings: Rings, chosen: Mask) -> Rings:
    if chosen.all():
        return rings
    points = rings.points[np.repeat(chosen, rings.sizes)]
    return Rings(points, rings.sizes[chosen], rings.owners[chosen], rings.values[chosen])


def _split_by_owner(rings: Rings) -> Iterator[Rings]:
    order = np.argsort(rings.owners, kind="stable")
    owners = rings.owners[order]
    begins = find_begins(rings.sizes)
    for part in np.split(order, np.flatnonzero(np.diff(owners)) + 1):
        if len(part):
            sizes = rings.sizes[part]
            points = rings.points[join_ranges(begins[part], sizes)]
            yield Rings(points, sizes, rings.owners[part], rings.values[part])


def _own_rings(rings: Rings, owner: int) -> Rings:
    return replace(rings, owners=np.full_like(rings.owners, owner))
