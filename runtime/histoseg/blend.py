"""Windows, and the blender that turns tile predictions into finished pixels.

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
    """Finished pixels: rows over the slide's whole width, or over the part that one tile completes."""

    m_y: int
    """First row, in model pixels."""
    probabilities: Floats
    """`(rows, columns, channels)`; 0 where nothing ran."""
    covered: Mask
    """`(rows, columns)`: where a prediction was written."""
    m_x: int = 0
    """First column, in model pixels."""


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


class Blender:
    """Blends tile predictions and hands out what no later tile can touch.

    Keeps only what neighbours still share: the cross-fade below a row of tiles, over the slide's width, and
    the one to the right of the last tile. All else is final at once. Tiles must come row by row.
    """

    def __init__(self, grid: Grid, channels: int, blend: Blend) -> None:
        """Begin at the slide's top left corner."""
        self._grid = grid
        self._blend: Blend = blend
        self._channels = channels
        self._below = _Means.empty(grid.y.fade, grid.x.length, channels)
        self._right = _Means.empty(0, 0, channels)

    def add(self, tile: Tile, prediction: Floats | None) -> Band:
        """Blend the next tile and return the pixels that are now final.

        Args:
            tile: The next tile of the grid, row by row.
            prediction: `(tile height, tile width, channels)` float32; `None` for a tile that did not run.
        """
        x0, y0, x1, y1 = tile.m_write
        width = self._grid.x.final_before(tile.column + 1) - x0
        height = self._grid.y.final_before(tile.row + 1) - y0
        area = _Means.empty(y1 - y0, x1 - x0, self._channels)
        # rows and columns that earlier tiles have written
        top = self._grid.y.fade if tile.row > 0 else 0
        left = self._grid.x.fade if tile.column > 0 else 0
        area.paste(0, 0, self._below.cut(0, top, x0, x1))
        area.paste(0, 0, self._right.cut(0, y1 - y0, 0, left))
        if prediction is not None:
            weights = np.outer(*self._weigh(tile))
            valid = prediction[y0 - tile.m_y : y1 - tile.m_y, x0 - tile.m_x : x1 - tile.m_x]
            area.cut(0, top, 0, x1 - x0).mix(valid[:top], weights[:top])
            area.cut(top, y1 - y0, 0, left).mix(valid[top:, :left], weights[top:, :left])
            area.cut(top, y1 - y0, left, x1 - x0).put(valid[top:, left:], weights[top:, left:])
        self._below.paste(0, x0, area.cut(height, y1 - y0, 0, width))
        self._right = area.cut(0, y1 - y0, width, x1 - x0)
        final = area.cut(0, height, 0, width)
        return Band(y0, final.values, final.weights > 0, x0)

    def _weigh(self, tile: Tile) -> tuple[Floats, Floats]:
        return (
            build_weights(self._grid.y, tile.row, self._blend),
            build_weights(self._grid.x, tile.column, self._blend),
        )


@dataclass(frozen=True)
class _Means:
    """Weighted means so far, `(rows, columns, channels)`, and the sums of their weights."""

    values: Floats
    weights: Floats

    @classmethod
    def empty(cls, rows: int, columns: int, channels: int) -> _Means:
        return cls(np.zeros((rows, columns, channels), np.float32), np.zeros((rows, columns), np.float32))

    def cut(self, top: int, bottom: int, left: int, right: int) -> _Means:
        return _Means(self.values[top:bottom, left:right], self.weights[top:bottom, left:right])

    def paste(self, top: int, left: int, part: _Means) -> None:
        rows, columns = part.weights.shape
        self.values[top : top + rows, left : left + columns] = part.values
        self.weights[top : top + rows, left : left + columns] = part.weights

    def put(self, values: Floats, weights: Floats) -> None:
        """Write weighted values of the same shape where nothing is yet."""
        self.weights[...] = weights
        np.copyto(self.values, values, where=(weights > 0)[..., None])

    def mix(self, values: Floats, weights: Floats) -> None:
        """Add weighted values of the same shape."""
        self.weights[...] += weights
        share = np.divide(weights, self.weights, out=np.zeros_like(weights), where=self.weights > 0)
        self.values[...] += (values - self.values) * share[..., None]


def join_bands(parts: list[Band]) -> Band:
    """Return parts that lie side by side as one band."""
    probabilities = np.concatenate([part.probabilities for part in parts], axis=1)
    covered = np.concatenate([part.covered for part in parts], axis=1)
    return Band(parts[0].m_y, probabilities, covered, parts[0].m_x)


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
