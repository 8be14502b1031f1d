"""Where regions of labels begin and end from row to row: their horizontal edges, along pixel borders.

A region is a set of pixels of one class that hang together by their sides. Its outline runs clockwise on the
screen (y grows downwards), so that the region lies to its right: along top edges it goes right, along bottom
edges left, down on the right side and up on the left one. Where two pixels meet by a corner alone, each is
walked around by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels, Mask

    Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Edges:
    """Horizontal edges, each from corner to corner."""

    row: Numbers
    """Row below the edge, counted from the first row of the block."""
    start: Numbers
    """Column where the outline comes to the edge."""
    end: Numbers
    """Column where the outline leaves it."""
    from_below: Mask
    """The outline comes up to the edge, on a left side; if not, it comes down, on a right side."""
    to_below: Mask
    """The outline leaves downwards, on a right side; if not, upwards, on a left side."""
    values: Labels


def find_edges(block: Labels, background: int) -> Edges:
    """Return the edges above every row of a block but its first.

    Args:
        block: `(rows + 1, width + 1)`: the row above comes first, and the last column is background.
        background: The class that makes no regions.
    """
    stride = block.shape[1]
    pixels = block.reshape(-1)
    above, below = pixels[:-stride], pixels[stride:]
    at = np.flatnonzero(above != below)
    left, right, value = _find_runs(below, at, background)
    tops = left, right, below[left - 1] != value, below[right] != value, value
    left, right, value = _find_runs(above, at, background)
    bottoms = right, left, above[right] == value, above[left - 1] == value, value
    starts, ends, from_below, to_below, values = (
        np.concatenate(pair) for pair in zip(tops, bottoms, strict=True)
    )
    # an edge ends beyond its last pixel, which may be the column of background, but in its own row
    row = np.minimum(starts, ends) // stride
    return Edges(row, starts - row * stride, ends - row * stride, from_below, to_below, values)


def _find_runs(pixels: Labels, at: Numbers, background: int) -> tuple[Numbers, Numbers, Labels]:
    """Return begin, end and class of the runs of one class in some pixels, the background aside."""
    values = pixels[at]
    inside = values != background
    at, values = at[inside], values[inside]
    breaks = (np.diff(at) != 1) | (values[1:] != values[:-1])
    begins = np.append(0, np.flatnonzero(breaks) + 1)[: len(at)]
    lasts = np.append(begins[1:], len(at))[: len(at)] - 1
    return at[begins], at[lasts] + 1, values[begins]
