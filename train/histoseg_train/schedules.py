"""The learning rate, as a function of how far training has come and of what it has come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

ScheduleName = Literal["cosine", "plateau", "constant"]
Monitor = Literal["dice", "miou", "loss"]

# the smallest gain that ends a plateau, as in `keras.callbacks.ReduceLROnPlateau`
MIN_GAIN = 1e-4
MAX_WARM_UP_STEPS = 200


def warm_up(step: int, steps: int) -> float:
    """Return the share of the peak rate that step `step`, from 0, of `steps` gets: rising over a tenth."""
    return min(1.0, (step + 1) / max(1, min(MAX_WARM_UP_STEPS, steps // 10)))


def cosine_share(progress: float) -> float:
    """Return the share of the peak rate after a share of the training: from 1 to 0 along a cosine.

    Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, one cycle.
    """
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def plateau_share(scores: Sequence[float], *, patience: int, factor: float) -> float:
    """Return the share of the peak rate after epochs with these scores.

    The rule of `keras.callbacks.ReduceLROnPlateau`, which forgets what it has seen when a run is resumed.

    Args:
        scores: Of the epochs so far; more is better, NaN is no gain.
        patience: Epochs without a gain after which the rate is multiplied by `factor`.
        factor: Below 1.
    """
    share, best, waited = 1.0, -math.inf, 0
    for score in scores:
        waited = 0 if score > best + MIN_GAIN else waited + 1
        best = score if waited == 0 else best
        if waited >= patience:
            share, waited = share * factor, 0
    return share
