"""Cross-entropy plus soft Dice: per-pixel gradients, and overlap that does not care how rare a class is."""

from __future__ import annotations

from typing import Any

# Keeps Dice of an absent class defined; small against the pixels of a patch.
SMOOTH_PIXELS = 1.0


def soft_dice_loss(truth: Any, probabilities: Any) -> Any:
    """Return one minus the soft Dice of the batch, averaged over the classes but the background.

    Milletari, Navab and Ahmadi 2016, https://arxiv.org/abs/1606.04797, without the squares. Pixels of the
    whole batch are counted together, so that a patch without a class does not distort it.

    Args:
        truth: Integer class indices `(n, h, w)`.
        probabilities: `float32` `(n, h, w, classes)` that sum to one; class 0 is the background.

    Returns:
        A scalar tensor between 0 and 1.
    """
    from keras import ops

    wanted = ops.one_hot(ops.cast(truth, "int32"), probabilities.shape[-1], dtype=probabilities.dtype)
    shared = ops.sum(wanted * probabilities, axis=(0, 1, 2))
    total = ops.sum(wanted, axis=(0, 1, 2)) + ops.sum(probabilities, axis=(0, 1, 2))
    dice = (2 * shared + SMOOTH_PIXELS) / (total + SMOOTH_PIXELS)
    return 1 - ops.mean(dice[1:])


def cross_entropy_dice_loss(truth: Any, probabilities: Any) -> Any:
    """Return mean cross-entropy plus `soft_dice_loss`.

    Args:
        truth: Integer class indices `(n, h, w)`.
        probabilities: `float32` `(n, h, w, classes)` that sum to one.

    Returns:
        A scalar tensor; 0 for a perfect prediction.
    """
    from keras import ops

    entropy = ops.sparse_categorical_crossentropy(ops.cast(truth, "int32"), probabilities)
    return ops.mean(entropy) + soft_dice_loss(truth, probabilities)
