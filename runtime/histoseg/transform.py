"""Pixel normalisation: the one definition that training, export and the runtime share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from histoseg.card import TransformStep

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Pixels

Normalization = Literal["unit", "symmetric", "imagenet", "none"]

NORMALIZATIONS: dict[str, TransformStep] = {
    "unit": TransformStep(scale=1 / 255),
    "symmetric": TransformStep(scale=1 / 127.5, mean=(1.0, 1.0, 1.0)),
    # mean and deviation of ImageNet's training set, as torchvision and Keras ("torch" mode) use them
    "imagenet": TransformStep(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "none": TransformStep(),
}
assert set(NORMALIZATIONS) == set(get_args(Normalization))


def apply_transform(rgb: Pixels, steps: Iterable[TransformStep]) -> Floats:
    """Return `(x * scale - mean) / std` of `rgb`, step after step.

    Args:
        rgb: `uint8` pixels, channels last: `(..., 3)`.
        steps: What the model's card lists, or one of `NORMALIZATIONS`.

    Returns:
        `float32`, the shape of `rgb`.
    """
    values = rgb.astype(np.float32)
    for step in steps:
        values *= np.float32(step.scale)
        values -= np.asarray(step.mean, np.float32)
        values /= np.asarray(step.std, np.float32)
    return values
