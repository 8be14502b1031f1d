"""Windows, and the accumulator that blends tile predictions into finished bands.

A window is a product of two one-dimensional ones. `cosine` has zero weight in the halo and a raised-cosine
cross-fade over the rest of the overlap; `crop` cuts in the middle of it. Both are partitions of unity.
Sides at the slide's border stay flat. What is kept is the weighted mean so far, so that skipped neighbours
darken nothing and a constant field comes out as exactly that constant (D. H. D. West, "Updating mean and
variance estimates", Communications of the ACM 22, 1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histoseg.grid import Axis, Grid, Tile

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Labels, Mask
    from histoseg.card import Blend


@dataclass(frozen=True)
class Band:
    """Finished rows of a slide, over its whole width."""

    m_y: int
    """First row, in model pixels."""
    probabilities: Floats
    """`(rows, width, channels)`; 0 where nothing ran."""
    covered: Mask
    """`(rows, width)`: where a prediction was written."""


def build_ramp(fade: int, blend: Blend) -> Floats:
    """Return the rising side of a window over the `fade` pixels that two neighbours share.

    The neighbour's falling side is its mirror image, and the two sum to 1 for `cosine` and `crop`.
    """
    centers = (np.arange(fade, dtype=np.float64) + 0.5) / max(fade, 1)
    if blend == "cosine":
        ramp = 0.5 - 0.5 * np.cos(np.pi * centers)
    elif blend == "crop":
        ramp = (np.arange(fade) >= fade // 2).astype(np.float64)
    elif blend == "constant":
        ramp = np.ones(fade)
    else:
        ramp = np.exp(-0.5 * ((1 - centers) / 0.4) ** 2)
    return ramp.astype(np.float32)


def build_weights(axis: Axis, index: int, blend: Blend) -> Floats:
    """Return the weights of tile `index` along `axis`, over its write range only."""
    rising, fade = build_ramp(axis.fade, blend), axis.fade
    # the mirror image of `crop` must exclude what the neighbour takes when the overlap is odd
    falling = 1 - rising if blend in ("cosine", "crop") else rising[::-1]
    weights = np.ones(axis.tile - 2 * axis.halo, np.float32)
    if index > 0:
        weights[:fade] = rising
    if index < axis.count - 1:
        # a second neighbour may begin before the first has ended: weights multiply, and are divided out
        weights[len(weights) - fade :] *= falling
    first = axis.start(index) + axis.halo
    begin, end = axis.write_range(index)
    return weights[begin - first : end - first]


class BandAccumulator:
    """Blends tile predictions and hands out rows that no later tile can touch.

    Holds `tile height x slide width x channels` float32 means, whatever the slide's height.
    Tiles must come row by row.
    """

    def __init__(self, grid: Grid, channels: int, blend: Blend) -> None:
        """Allocate for one row of tiles of `grid`."""
        rows = min(grid.y.tile - 2 * grid.y.halo, grid.y.length)
        self._grid = grid
        self._blend: Blend = blend
        self._means = np.zeros((rows, grid.x.length, channels), np.float32)
        self._weights = np.zeros((rows, grid.x.length), np.float32)
        self._m_top = 0
        self._x_weights: dict[int, Floats] = {}

    def add(self, tile: Tile, prediction: Floats) -> None:
        """Add one tile's prediction.

        Args:
            tile: A tile of the grid; its row must not have been finished.
            prediction: `(tile height, tile width, channels)` float32.
        """
        x0, y0, x1, y1 = tile.m_write
        if x0 >= x1 or y0 >= y1:
            return
        weights = build_weights(self._grid.y, tile.row, self._blend)[:, None] * self._column_weights(
            tile.column
        )
        valid = prediction[y0 - tile.m_y : y1 - tile.m_y, x0 - tile.m_x : x1 - tile.m_x]
        rows = slice(y0 - self._m_top, y1 - self._m_top)
        means, total = self._means[rows, x0:x1], self._weights[rows, x0:x1]
        total += weights
        share = np.divide(weights, total, out=np.zeros_like(total), where=total > 0)
        means += (valid - means) * share[..., None]

    def finish_row(self, row: int) -> Band | None:
        """Return the rows that are final once tile row `row` is done, and forget them."""
        bottom = self._grid.y.final_before(row + 1)
        count = bottom - self._m_top
        if count <= 0:
            return None
        band = Band(self._m_top, self._means[:count], self._weights[:count] > 0)
        self._means, self._weights = _shift_up(self._means, count), _shift_up(self._weights, count)
        self._m_top += count
        return band

    def _column_weights(self, column: int) -> Floats:
        if column not in self._x_weights:
            self._x_weights[column] = build_weights(self._grid.x, column, self._blend)
        return self._x_weights[column]


def _shift_up(rows: Floats, count: int) -> Floats:
    """Return a new array without the first `count` rows, filled up with zeros."""
    shifted = np.zeros_like(rows)
    shifted[: len(rows) - count] = rows[count:]
    return shifted


def label_band(band: Band, *, background: int, threshold: float | None = None) -> Labels:
    """Return the class of every pixel of a band, `(rows, width)` uint8.

    Args:
        band: Finished probabilities.
        background: Class of the pixels where nothing ran.
        threshold: Two classes only: probability of class 1 from which a pixel is class 1.
    """
    values = band.probabilities
    if threshold is not None:
        labels: Labels = (values[..., 1] >= threshold).astype(np.uint8)
    elif values.shape[-1] == 2:
        labels = (values[..., 1] > values[..., 0]).astype(np.uint8)  # eight times as fast as argmax
    else:
        labels = values.argmax(axis=-1).astype(np.uint8)
    labels[~band.covered] = background
    return labels
