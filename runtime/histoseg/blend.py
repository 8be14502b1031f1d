"""Windows, and the blender that turns tile predictions into finished pixels.

A window is a product of two one-dimensional ones. `cosine` has zero weight in the halo and a raised-cosine
cross-fade over the rest of the overlap: a partition of unity. `crop` has no cross-fade at all: its grid lets
tiles meet. Sides at the slide's border stay flat. What is kept is the weighted mean so far, so that skipped
neighbours darken nothing and a constant field comes out as exactly that constant (D. H. D. West, "Updating
mean and variance estimates", Communications of the ACM 22, 1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histoseg.grid import Axis, Grid, Panel, Tile

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

    The neighbour's falling side is its mirror image, and the two sum to 1 for `cosine`.
    """
    centers = (np.arange(fade, dtype=np.float64) + 0.5) / max(fade, 1)
    if blend == "cosine":
        ramp = 0.5 - 0.5 * np.cos(np.pi * centers)
    elif blend == "gaussian":
        ramp = np.exp(-0.5 * ((1 - centers) / 0.4) ** 2)
    else:
        ramp = np.ones(fade)
    return ramp.astype(np.float32)


def build_weights(axis: Axis, index: int, blend: Blend) -> Floats:
    """Return the weights of tile `index` along `axis`, over its write range only."""
    begin, end = axis.write_range(index)
    if axis.crop:
        return np.ones(end - begin, np.float32)
    rising, fade = build_ramp(axis.fade, blend), axis.fade
    weights = np.ones(axis.tile - 2 * axis.halo, np.float32)
    if index > 0:
        weights[:fade] = rising
    if index < axis.count - 1:
        # a second neighbour may begin before the first has ended: weights multiply, and are divided out
        weights[len(weights) - fade :] *= 1 - rising if blend == "cosine" else rising[::-1]
    first = axis.start(index) + axis.halo
    return weights[begin - first : end - first]


class Blender:
    """Blends tile predictions and hands out what no later tile can touch.

    Keeps only what neighbours still share: the cross-fade below a row of tiles, over the panel's width, and
    the one to the right of the last tile. All else is final at once. Tiles must come row by row.
    """

    def __init__(self, grid: Grid, channels: int, blend: Blend, panel: Panel | None = None) -> None:
        """Begin at the top left corner of a panel, or of the slide.

        Raises:
            ValueError: The grid lets tiles meet (`crop`) and the blend does not, or the other way round.
        """
        if grid.x.crop != (blend == "crop"):
            raise ValueError(f"blend is {blend}, but the grid was laid with crop={grid.x.crop}")
        columns = panel.columns if panel else range(grid.x.count)
        self._grid = grid
        self._blend: Blend = blend
        self._channels = channels
        self._first_column = columns[0]
        self._m_x0 = grid.x.write_range(columns[0])[0]
        width = grid.x.write_range(columns[-1])[1] - self._m_x0
        self._below = _Means.empty(grid.y.fade, width, channels)
        self._right = _Means.empty(0, 0, channels)

    def add(self, tile: Tile, prediction: Floats | None) -> Band:
        """Blend the next tile and return the pixels that are now final.

        Args:
            tile: The next tile of the panel, row by row.
            prediction: `(tile height, tile width, channels)` float32, which is changed and becomes part of
                the result: blending in place touches no pixel but those that neighbours share. `None` for a
                tile that did not run.
        """
        x0, y0, x1, y1 = tile.m_write
        width = self._grid.x.final_before(tile.column + 1) - x0
        height = self._grid.y.final_before(tile.row + 1) - y0
        # rows and columns that earlier tiles have written
        top = self._grid.y.fade if tile.row > 0 else 0
        left = self._grid.x.fade if tile.column > self._first_column else 0
        area = self._begin(tile, prediction)
        area.join(0, left, self._below.cut(0, top, x0 - self._m_x0 + left, x1 - self._m_x0))
        area.join(0, 0, self._right.cut(0, y1 - y0, 0, left))
        self._below.paste(0, x0 - self._m_x0, area.cut(height, y1 - y0, 0, width))
        self._right = area.cut(0, y1 - y0, width, x1 - x0).copy()
        final = area.cut(0, height, 0, width)
        return Band(y0, final.values, final.weights > 0, x0)

    def _begin(self, tile: Tile, prediction: Floats | None) -> _Means:
        x0, y0, x1, y1 = tile.m_write
        if prediction is None:
            return _Means.empty(y1 - y0, x1 - x0, self._channels)
        valid = prediction[y0 - tile.m_y : y1 - tile.m_y, x0 - tile.m_x : x1 - tile.m_x]
        return _Means(valid, np.outer(*self._weigh(tile)))

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

    def copy(self) -> _Means:
        return _Means(self.values.copy(), self.weights.copy())

    def paste(self, top: int, left: int, part: _Means) -> None:
        rows, columns = part.weights.shape
        self.values[top : top + rows, left : left + columns] = part.values
        self.weights[top : top + rows, left : left + columns] = part.weights

    def join(self, top: int, left: int, before: _Means) -> None:
        """Let the means of earlier tiles and those here become one."""
        rows, columns = before.weights.shape
        here = self.cut(top, top + rows, left, left + columns)
        new = here.weights.copy()
        here.weights[...] += before.weights
        share = np.divide(new, here.weights, out=np.zeros_like(new), where=here.weights > 0)
        here.values[...] = before.values + (here.values - before.values) * share[..., None]


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
    labels = choose_labels(band.probabilities, threshold)
    if not band.covered.all():
        labels[~band.covered] = background
    return labels


def choose_labels(probabilities: Floats, threshold: float | None) -> Labels:
    """Return the class of every pixel, `uint8`, of float32 probabilities whose last axis is the classes.

    Args:
        probabilities: Of any shape.
        threshold: As for `label_band`; `None` for the likeliest class, the first of equals.
    """
    if threshold is not None:
        return np.asarray(probabilities[..., 1] >= threshold, np.uint8)
    if probabilities.shape[-1] == 2:
        # eight times as fast as argmax
        return np.asarray(probabilities[..., 1] > probabilities[..., 0], np.uint8)
    return np.asarray(probabilities.argmax(axis=-1), np.uint8)
