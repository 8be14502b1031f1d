"""What a network comes to on the held-out images, after every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from histoseg.score import count_confusion, score_confusion
from histoseg.transform import NORMALIZATIONS, apply_transform
from histoseg_train.job import Job
from histoseg_train.losses import build_loss
from histoseg_train.metrics import foreground_dice, weighted_dice


@dataclass(frozen=True)
class Validation:
    """Means over the sources, weighted as these are drawn from in training."""

    loss: float
    """Of a source: the mean over its images."""
    dice: float
    """Of a source: all pixels of its images together; the background does not count."""
    miou: float
    """Of a source: as Dice, but the background counts."""
    dice_per_source: dict[str, float]


@dataclass
class _Tally:
    """What is added up over the images of one source."""

    weight: float
    counts: NDArray[np.int64]
    losses: list[float]


def validate_network(model: Any, job: Job) -> Validation:
    """Run the held-out images of a job through a model, each as a whole; without any, all figures are NaN.

    Args:
        model: From normalised pixels to probabilities, both channels last.
        job: Names images, classes, normalisation and loss.
    """
    classes, loss = len(job.target.class_names), build_loss(job.loss)
    tallies: dict[str, _Tally] = {}
    for index, item in enumerate(job.held_out.items):
        sample = job.held_out[index]
        probabilities = predict_probabilities(model, sample.rgb, job)
        labels = np.argmax(probabilities, axis=-1).astype(np.uint8)
        tally = tallies.setdefault(
            item.source, _Tally(item.weight, np.zeros((classes, classes), np.int64), [])
        )
        tally.counts += count_confusion(sample.labels, labels, classes=classes)
        tally.losses.append(_measure_loss(loss, sample.labels, probabilities))
    return _summarise(tallies, job.target.class_names)


def predict_probabilities(model: Any, rgb: NDArray[np.uint8], job: Job) -> NDArray[np.float32]:
    """Return the probabilities of one whole image, which is mirrored up to what the network takes.

    Args:
        model: From normalised pixels to probabilities, both channels last.
        rgb: `uint8` `(h, w, 3)`.
        job: Names the normalisation, and the network's stride.

    Returns:
        `float32` `(h, w, classes)`.
    """
    (height, width), multiple = rgb.shape[:2], job.network.stride_multiple
    rest = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    pixels = apply_transform(np.pad(rgb, rest, mode="reflect"), [NORMALIZATIONS[job.target.normalization]])
    probabilities = ops.convert_to_numpy(model(pixels[None], training=False))[0]
    return np.asarray(probabilities[:height, :width], np.float32)


def _measure_loss(
    loss: Callable[[Any, Any], Any], labels: NDArray[np.uint8], probabilities: NDArray[np.float32]
) -> float:
    return float(ops.convert_to_numpy(loss(labels[None], ops.convert_to_tensor(probabilities[None]))))


def _summarise(tallies: Mapping[str, _Tally], names: tuple[str, ...]) -> Validation:
    if not tallies:
        return Validation(math.nan, math.nan, math.nan, {})
    weights = {source: tally.weight for source, tally in tallies.items()}
    losses = [float(np.mean(tally.losses)) for tally in tallies.values()]
    dice = {source: foreground_dice(tally.counts) for source, tally in tallies.items()}
    ious = {source: score_confusion(tally.counts, names)["mean_iou"] for source, tally in tallies.items()}
    return Validation(
        loss=float(np.average(losses, weights=list(weights.values()))),
        dice=weighted_dice(dice, weights),
        miou=weighted_dice(ious, weights),
        dice_per_source=dice,
    )
