"""Pixel normalisation: the one definition that training, export and the runtime share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from histoseg.card import TransformStep

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Pixels

Normalization = Literal["unit", "symmetric", "imagenet", "caffe", "none"]


@dataclass(frozen=True)
class ReversedStep:
    """A step whose result is taken in the order blue, green, red; mean and deviation stay in RGB order."""

    step: TransformStep


NORMALIZATIONS: dict[str, TransformStep | ReversedStep] = {
    "unit": TransformStep(scale=1 / 255),
    "symmetric": TransformStep(scale=1 / 127.5, mean=(1.0, 1.0, 1.0)),
    # mean and deviation of ImageNet's training set, as torchvision and Keras ("torch" mode) use them
    "imagenet": TransformStep(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    # keras.applications.imagenet_utils.preprocess_input, mode "caffe": VGG and ResNet
    "caffe": ReversedStep(TransformStep(mean=(123.68, 116.779, 103.939))),
    "none": TransformStep(),
}
assert set(NORMALIZATIONS) == set(get_args(Normalization))


def apply_transform(rgb: Pixels, steps: Iterable[TransformStep | ReversedStep]) -> Floats:
    """Return `(x * scale - mean) / std` of `rgb`, step after step.

    Args:
        rgb: `uint8` pixels, channels last: `(..., 3)`.
        steps: What the model's card lists, or one of `NORMALIZATIONS`.

    Returns:
        `float32`, the shape of `rgb`.
    """
    values = rgb.astype(np.float32)
    for item in steps:
        step = item.step if isinstance(item, ReversedStep) else item
        values *= np.float32(step.scale)
        values -= np.asarray(step.mean, np.float32)
        values /= np.asarray(step.std, np.float32)
        if isinstance(item, ReversedStep):
            values = np.ascontiguousarray(values[..., ::-1])
    return values
