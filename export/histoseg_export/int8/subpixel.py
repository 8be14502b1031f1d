"""Convolutions whose result is folded: the pixels of `s x s` blocks lie in channels, at `1 / s` of the size.

Channels of a folded value are ordered by phase: channel `(a * s + b) * C + c` holds channel `c` of the pixels
`(s * y + a, s * x + b)`, as ONNX's DepthToSpace has it in its mode DCR. A transposed convolution is a plain
one with a folded result (Shi et al. 2016, https://arxiv.org/abs/1609.05158 and 1609.07009).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Folded:
    """Weights of a convolution whose result is folded."""

    weights: Weights
    """`(s * s * filters, channels, height, width)`."""
    pads: tuple[int, int, int, int]
    """Top, left, bottom and right, as ONNX has them."""
    strides: tuple[int, int] = (1, 1)


def fold_plain(weights: Weights, s: int) -> Folded:
    """Fold a convolution of stride 1 with "same" padding, of an unfolded value.

    Args:
        weights: `(filters, channels, k, k)`, k odd.
        s: Size of the blocks.
    """
    filters, channels, k, _ = weights.shape
    reach = (k - 1) // 2
    folded = np.zeros((s, s, filters, channels, k + s - 1, k + s - 1), np.float32)
    for a, b in np.ndindex(s, s):
        folded[a, b, :, :, a : a + k, b : b + k] = weights
    rest = k - 1 - reach
    return Folded(_join(folded), (reach, reach, rest, rest), (s, s))


def fold_folded(weights: Weights, s: int) -> Folded:
    """Fold a convolution of stride 1 with "same" padding, of a folded value.

    Args:
        weights: `(filters, channels, k, k)`, k odd.
        s: Size of the blocks.

    Returns:
        Weights that expect channels ordered by phase.
    """
    filters, channels, k, _ = weights.shape
    reach = (k - 1) // 2
    before, after = -(-reach // s), (s - 1 + reach) // s
    side = before + after + 1
    folded = np.zeros((s, s, filters, s, s, channels, side, side), np.float32)
    for a, b, y, x in np.ndindex(s, s, k, k):
        (block_y, phase_y), (block_x, phase_x) = divmod(a + y - reach, s), divmod(b + x - reach, s)
        folded[a, b, :, phase_y, phase_x, :, block_y + before, block_x + before] = weights[:, :, y, x]
    shape = (s * s * filters, s * s * channels, side, side)
    return Folded(folded.reshape(shape), (before, before, after, after))


def fold_transposed(weights: Weights, s: int, pads: tuple[int, int]) -> Folded:
    """Turn a transposed convolution of stride `s` into a convolution with a folded result.

    Args:
        weights: `(channels, filters, height, width)`, as ONNX has them.
        s: Its stride.
        pads: Its padding at the top and at the left.
    """
    channels, filters, height, width = weights.shape
    (top, bottom), (left, right) = _reach(height, s, pads[0]), _reach(width, s, pads[1])
    folded = np.zeros((s, s, filters, channels, bottom - top + 1, right - left + 1), np.float32)
    for a, b, y, x in np.ndindex(s, s, *folded.shape[4:]):
        tap_y, tap_x = a + pads[0] - s * (y + top), b + pads[1] - s * (x + left)
        if 0 <= tap_y < height and 0 <= tap_x < width:
            folded[a, b, :, :, y, x] = weights[:, :, tap_y, tap_x].T
    return Folded(_join(folded), (-top, -left, bottom, right))


def _reach(side: int, s: int, pad: int) -> tuple[int, int]:
    """Return the first and last input pixel, seen from its own block, that a block's results come from."""
    return min(0, -((side - 1 - pad) // s)), max(0, (s - 1 + pad) // s)


def _join(folded: NDArray[Any]) -> Weights:
    s, _, filters, *rest = folded.shape
    return np.asarray(folded.reshape(s * s * filters, *rest), np.float32)
