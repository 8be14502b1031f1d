"""How far tiles of a model overlap: integers only."""

from __future__ import annotations

from histoseg.card import Tiling

FADE_SHARE, LEAST_FADE_PX = 64, 16


def fit_tiling(side: int, *, stride: int, halo: int) -> Tiling:
    """Choose the overlap: two halos and a cross-fade of a 64th of the tile, at least 16 px.

    Beyond the halo neighbours agree, so that a wider cross-fade costs time and changes nothing. A tile too
    small for all of it gives up the cross-fade first, then the halo.

    Args:
        side: Of the tile, in model pixels.
        stride: The step is a multiple of it.
        halo: Rim of a prediction that the tile's border changes, in model pixels.
    """
    step = _fit_step(side - 2 * halo - max(side // FADE_SHARE, LEAST_FADE_PX), stride)
    if side - step < 2 * halo:
        step = _fit_step(side - 2 * halo, stride)
    overlap = max(side - step, 0)
    return Tiling(stride, min(halo, overlap // 2), overlap)


def _fit_step(room: int, stride: int) -> int:
    """Return the largest multiple of the stride that fits, one at least."""
    return max(room // stride, 1) * stride
