"""Closed outlines: made simple, measured, sorted into polygons with holes, and simplified.

Points are corners of pixels in `m_` pixels, x and y. The rings of a batch lie one after another in one array;
a ring's first point is not repeated at its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from histoseg.chains import Chains, find_begins, follow, join_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels, Mask

    Numbers = NDArray[np.int64]
    Points = NDArray[np.int32]

# A step beside a longer side is left as it is: a cut across many pixels would come close to a side that faces
# it, and rounding could make the two touch.
LONGEST_CUT_PX = 16


@dataclass(frozen=True)
class Rings:
    """Outlines as they were traced."""

    points: Points
    """`(n, 2)` int32: of every horizontal edge, in order, the column where it ends, and its row."""
    sizes: Numbers
    """Edges of each ring."""
    owners: Numbers
    """A number for the region of each ring."""
    values: Labels
    """The class of each ring."""


@dataclass(frozen=True)
class Polygons:
    """Regions, each as its outer ring and its holes."""

    values: Labels
    """The class of each region."""
    areas_px: Numbers
    """Pixels of each region."""
    counts: Numbers
    """Rings of each region: the outer one first, then holes."""
    sizes: Numbers
    """Points of each ring."""
    points: Points
    """`(n, 2)` int32 x and y. Outer rings have a positive shoelace area, holes a negative one."""
    corners: Points
    """`(n, 2)` int32: the uppermost corner of each region, of those the leftmost: no two of a class have the
    same."""

    @property
    def vertices(self) -> Numbers:
        """Points of each region."""
        return _sum_from(find_begins(self.counts), self.sizes)

    def select(self, chosen: Mask) -> Polygons:
        """Return some regions, by a mask."""
        if chosen.all():
            return self
        rings = np.repeat(chosen, self.counts)
        points = self.points[np.repeat(rings, self.sizes)]
        return Polygons(
            self.values[chosen],
            self.areas_px[chosen],
            self.counts[chosen],
            self.sizes[rings],
            points,
            self.corners[chosen],
        )


def join_rings(parts: list[Rings]) -> Rings:
    """Return the rings of all parts, one after another."""
    return Rings(
        np.concatenate([part.points for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.owners for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def make_polygons(rings: Rings) -> Polygons:
    """Sort rings into polygons; the rings must hold all of every region they hold any of.

    An outline that comes back to one of its corners is cut there, into an outer ring and a hole that touch in
    that point, as OGC Simple Features ask. Rings begin at their uppermost corner, of those the leftmost.
    """
    points, sizes, parents = _split_at_touches(_place_corners(rings), rings.sizes * 2)
    areas = measure_rings(points, sizes)
    firsts = _find_firsts(points, sizes)
    owners = rings.owners[parents]
    order = np.lexsort((points[firsts, 0], points[firsts, 1], areas < 0, owners))
    begins = find_begins(sizes)
    turned = join_ranges(np.zeros_like(sizes), sizes[order])
    shift, size, begin = (np.repeat(part[order], sizes[order]) for part in (firsts - begins, sizes, begins))
    points = points[begin + (turned + shift) % size]
    heads = np.flatnonzero(areas[order] > 0)
    return Polygons(
        rings.values[parents[order]][heads],
        _sum_from(heads, areas[order]),
        np.diff(heads, append=len(order)),
        sizes[order],
        points,
        points[find_begins(sizes[order])[heads]],
    )


def measure_rings(points: Points, sizes: Numbers) -> Numbers:
    """Return the shoelace area of each ring, int64; every second side must be horizontal."""
    x, y = points.T.astype(np.int64)
    before, after = _find_neighbours(sizes)
    # twice the area is the sum of x (y after - y before)
    return _sum_from(find_begins(sizes), x * (y[after] - y[before])) // 2


def simplify_polygons(polygons: Polygons) -> Polygons:
    """Cut the corners of steps, and drop points within straight lines; points come in halves of a pixel.

    A side one pixel long that the outline takes as a step (it turns one way before, the other way after)
    becomes its midpoint. No point moves by more than half a pixel. Between two midpoints the outline stays in
    the half of each pixel that is nearest to the side it runs along, so that rings neither cross nor touch
    where they did not before: midpoints belong to one side only. Areas stay those of the pixels.
    """
    x, y = polygons.points.T
    before, after = _find_neighbours(polygons.sizes)
    run, rise = x[after] - x, y[after] - y
    length = np.abs(run) + np.abs(rise)
    turn = np.sign(run[before] * rise - rise[before] * run)
    longest = np.maximum(length[before], length[after])
    step = (length == 1) & (turn != turn[after]) & (longest <= LONGEST_CUT_PX)
    kept = np.stack([~(step | step[before]), step], axis=1).reshape(-1)
    corners = 2 * polygons.points
    middles = corners + np.stack([run, rise], axis=1)
    points = np.stack([corners, middles], axis=1).reshape(-1, 2)[kept]
    points, sizes = _drop_straight(points, _count(kept, polygons.sizes * 2))
    return replace(polygons, sizes=sizes, points=points, corners=2 * polygons.corners)


def double_points(polygons: Polygons) -> Polygons:
    """Return the same outlines with points in halves of a pixel."""
    return replace(polygons, points=2 * polygons.points, corners=2 * polygons.corners)


def _place_corners(rings: Rings) -> Points:
    """Return both ends of every horizontal edge."""
    before, _ = _find_neighbours(rings.sizes)
    corners = np.repeat(rings.points, 2, axis=0)
    corners[::2, 0] = rings.points[before, 0]
    return corners


def _find_neighbours(sizes: Numbers) -> tuple[Numbers, Numbers]:
    """Return the points before and after every point in its ring."""
    ends = np.cumsum(sizes)
    at = np.arange(sizes.sum())
    before, after = at - 1, at + 1
    before[ends - sizes] = ends - 1
    after[ends - 1] = ends - sizes
    return before, after


def _find_firsts(points: Points, sizes: Numbers) -> Numbers:
    """Return the uppermost point of each ring, of those the leftmost."""
    if not len(sizes):
        return np.zeros(0, np.int64)
    keys = points[:, 1].astype(np.int64) << 32 | points[:, 0]
    least = np.minimum.reduceat(keys, find_begins(sizes))
    return np.flatnonzero(keys == np.repeat(least, sizes))


def _split_at_touches(points: Points, sizes: Numbers) -> tuple[Points, Numbers, Numbers]:
    """Cut rings that pass a point twice; return points, sizes, and the ring that each comes from."""
    rings = np.arange(len(sizes))
    ring = np.repeat(rings, sizes)
    x, y = points.T.astype(np.int64)
    height, width = y.max(initial=0) + 1, x.max(initial=0) + 1
    keys = (ring * height + y) * width + x
    in_order = np.sort(keys)
    twice = in_order[1:][in_order[1:] == in_order[:-1]]
    if not len(twice):
        return points, sizes, rings
    touches = np.zeros(len(sizes), np.bool_)
    touches[twice // (height * width)] = True
    at = np.flatnonzero(touches[ring])
    loops = _cut_loops(keys[at], sizes[touches])
    order = np.concatenate([np.flatnonzero(~touches[ring]), at[loops.order]])
    parents = np.concatenate([rings[~touches], ring[at[loops.heads]]])
    return points[order], np.concatenate([sizes[~touches], loops.sizes]), parents


def _cut_loops(keys: Numbers, sizes: Numbers) -> Chains:
    """Let rings go on, where they come to a point again, as they did the other time."""
    _, after = _find_neighbours(sizes)
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    one, other = order[same], order[same + 1]
    after[one], after[other] = after[other], after[one]
    return follow(after)


def _drop_straight(points: Points, sizes: Numbers) -> tuple[Points, Numbers]:
    """Drop points on the straight line between their neighbours."""
    before, after = _find_neighbours(sizes)
    (run, rise), (next_run, next_rise) = (points - points[before]).T, (points[after] - points).T
    bent = run.astype(np.int64) * next_rise != rise.astype(np.int64) * next_run
    return points[bent], _count(bent, sizes)


def _count(kept: NDArray[np.bool_], sizes: Numbers) -> Numbers:
    """Return how many points each ring keeps."""
    return _sum_from(find_begins(sizes), kept.astype(np.int64))


def _sum_from(begins: Numbers, numbers: Numbers) -> Numbers:
    """Return the sums of what lies between begins; `reduceat` takes no empty list of them."""
    return np.add.reduceat(numbers, begins) if len(begins) else numbers[:0]
