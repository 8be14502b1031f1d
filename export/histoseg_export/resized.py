"""Compare a network that was rebuilt for another tile with itself at its own size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from histoseg.blend import choose_labels
from histoseg_export.retarget import accepts_tile

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Labels, Pixels

LEAST_PX = 8
NOTEWORTHY = 0.97
"""Agreement of labels below which a person is told."""

Predict = Callable[[Any, "Pixels"], "Floats"]
"""Told a model and `(n, height, width, 3)` uint8: `(n, height, width, classes)` probabilities."""


def compare_sizes(
    model: Any,
    fixed: Any,
    images: Pixels,
    predict: Predict,
    *,
    stride: int,
    halo: int,
    threshold: float | None = None,
) -> float | None:
    """Return on how many pixels a rebuilt network and its original agree, in the middle of what both see.

    Args:
        model: The network as loaded.
        fixed: The same, rebuilt for another tile.
        images: What to look at: `(n, height, width, 3)` uint8, as large as the larger of both tiles.
        predict: Runs either.
        stride: Both tiles must lie on multiples of it.
        halo: How far borders reach; less is compared where that leaves nothing.
        threshold: Of two classes, as in the card.

    Returns:
        A share of 0 to 1; `None` where the network takes tiles of any size as it is, or is too small to tell.
    """
    tile = (fixed.inputs[0].shape[2], fixed.inputs[0].shape[1])
    if accepts_tile(model, tile):
        return None
    own = (model.inputs[0].shape[2] or tile[0], model.inputs[0].shape[1] or tile[1])
    half = [min(pair) // 2 - max(min(pair) // 4, halo) for pair in zip(own, tile, strict=True)]
    if min(half) < LEAST_PX:
        return None
    first, second = (
        _label_middle(network, images, size, half, predict, stride, threshold)
        for network, size in ((model, own), (fixed, tile))
    )
    return float((first == second).mean())


def _label_middle(
    network: Any,
    images: Pixels,
    size: tuple[int, int],
    half: list[int],
    predict: Predict,
    stride: int,
    threshold: float | None,
) -> Labels:
    """Return the labels around the middle of images, of which the network sees the middle part."""
    middle_y, middle_x = images.shape[1] // 2, images.shape[2] // 2
    top, left = (
        (middle - side // 2) // stride * stride for middle, side in ((middle_y, size[1]), (middle_x, size[0]))
    )
    cut = images[:, top : top + size[1], left : left + size[0]]
    labels = choose_labels(predict(network, cut), threshold)
    y, x = middle_y - top, middle_x - left
    return labels[:, y - half[1] : y + half[1], x - half[0] : x + half[0]]


def explain_resizing(agreement: float | None, tile: tuple[int, int]) -> tuple[str, ...]:
    """Say how far a rebuilt network is from its original, where that is worth a sentence."""
    if agreement is None or agreement >= NOTEWORTHY:
        return ()
    return (
        f"rebuilt for {tile[0]}x{tile[1]} px, the network gives {agreement:.1%} of the labels it gives at "
        "its own size, in the middle of tiles: it takes note of the size; leave --tile out",
    )
