"""Dice over whole sets of images: counts are added up first, and divided once.

The mean of per-batch Dice values depends on the batches and explodes on empty ones; counts do neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def dice_per_class(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the Dice coefficient of every class, NaN for one in neither truth nor prediction.

    Args:
        confusion: Counts from `histoseg.score.count_confusion`.

    Returns:
        `float64` `(classes,)`.
    """
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * np.diag(confusion) / total, np.float64)


def foreground_dice(confusion: NDArray[np.int64], *, background: int = 0) -> float:
    """Return the mean Dice of the classes but the background, NaN when none occurs."""
    dice = np.delete(dice_per_class(confusion), background)
    present = dice[~np.isnan(dice)]
    return float(present.mean()) if present.size else math.nan


def weighted_dice(dice: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return the mean of the sources' Dice weighted by `weights`, leaving out those that are NaN."""
    known = {name: value for name, value in dice.items() if not math.isnan(value)}
    total = sum(weights[name] for name in known)
    return sum(weights[name] * value for name, value in known.items()) / total if total else math.nan
