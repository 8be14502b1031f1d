"""Whole held-out images through a model: labels, counts, Dice of every source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from histoseg.score import count_confusion
from histoseg.transform import NORMALIZATIONS, Normalization, apply_transform
from histoseg_train.images import SampleStore
from histoseg_train.metrics import foreground_dice, weighted_dice


@dataclass(frozen=True)
class Evaluation:
    """Dice of whole images; the background (class 0) does not count."""

    overall: float
    """The mean over the sources, weighted as they are drawn from in training."""
    per_source: dict[str, float]
    """Of all pixels of a source's images together."""

    def to_json(self) -> dict[str, Any]:
        """Return the document that travels in the model's metadata, rounded."""
        per_source = {name: round(value, 4) for name, value in self.per_source.items() if np.isfinite(value)}
        overall = round(self.overall, 4) if np.isfinite(self.overall) else None
        return {"overall": overall, "per_source": per_source}


def evaluate_samples(
    model: Any, store: SampleStore, *, classes: int, normalization: Normalization, stride_multiple: int
) -> Evaluation:
    """Run whole images through `model` and return Dice for every source.

    Args:
        model: A Keras model from normalised pixels to probabilities, both channels last.
        store: The images.
        classes: Number of classes.
        normalization: What the model expects.
        stride_multiple: Images are mirrored up to a multiple of it.
    """
    confusions: dict[str, NDArray[np.int64]] = {}
    weights: dict[str, float] = {}
    for index, item in enumerate(store.items):
        sample = store[index]
        predicted = predict_labels(
            model, sample.rgb, normalization=normalization, stride_multiple=stride_multiple
        )
        counts = count_confusion(sample.labels, predicted, classes=classes)
        confusions[item.source] = confusions.get(item.source, np.zeros_like(counts)) + counts
        weights[item.source] = item.weight
    return _summarise(confusions, weights)


def predict_labels(
    model: Any, rgb: NDArray[np.uint8], *, normalization: Normalization, stride_multiple: int
) -> NDArray[np.uint8]:
    """Return the most probable class of every pixel of one whole image.

    Args:
        model: A Keras model from normalised pixels to probabilities, both channels last.
        rgb: `uint8` `(h, w, 3)`.
        normalization: What the model expects.
        stride_multiple: The image is mirrored up to a multiple of it, right and below.

    Returns:
        `uint8` `(h, w)`.
    """
    height, width = rgb.shape[:2]
    rest = ((0, -height % stride_multiple), (0, -width % stride_multiple), (0, 0))
    pixels = apply_transform(np.pad(rgb, rest, mode="reflect"), [NORMALIZATIONS[normalization]])
    probabilities = ops.convert_to_numpy(model(pixels[None], training=False))[0]
    return np.argmax(probabilities[:height, :width], axis=-1).astype(np.uint8)


def _summarise(confusions: Mapping[str, NDArray[np.int64]], weights: Mapping[str, float]) -> Evaluation:
    per_source = {name: foreground_dice(counts) for name, counts in confusions.items()}
    return Evaluation(weighted_dice(per_source, weights), per_source)
