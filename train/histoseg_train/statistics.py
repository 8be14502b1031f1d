"""How many pixels and images of each class a training set holds, by source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histoseg_train.images import Sample, SampleStore


@dataclass(frozen=True)
class ClassCount:
    """One class in one source."""

    source: str
    held_out: bool
    images: int
    """Of the source."""
    images_with_it: int
    pixels: int
    share: float
    """Of the source's pixels."""


def count_classes(store: SampleStore, *, classes: int) -> list[list[ClassCount]]:
    """Read every sample that has a mask, and count.

    Returns:
        For every source, the training images first, the count of each class.

    Raises:
        DataError: As `read_sample`.
    """
    pixels: dict[tuple[bool, str], list[NDArray[np.int64]]] = {}
    for index, item in enumerate(store.items):
        if item.mask is None:
            continue
        counts = np.bincount(store[index].labels.ravel(), minlength=classes)
        pixels.setdefault((item.held_out, item.source), []).append(counts)
    return [
        _tally(source, held_out=held_out, counts=np.array(counts))
        for (held_out, source), counts in sorted(pixels.items(), key=lambda entry: entry[0][0])
    ]


def _tally(source: str, *, held_out: bool, counts: NDArray[np.int64]) -> list[ClassCount]:
    images, total = len(counts), int(counts.sum())
    sums, found = counts.sum(axis=0).tolist(), (counts > 0).sum(axis=0).tolist()
    return [
        ClassCount(source, held_out, images, with_it, count, count / total)
        for with_it, count in zip(found, sums, strict=True)
    ]


def measure_shares(samples: Iterable[Sample], *, classes: int) -> NDArray[np.float64]:
    """Return the share of each class in all pixels of some samples, `(classes,)`."""
    counts = np.zeros(classes, np.int64)
    for sample in samples:
        counts += np.bincount(sample.labels.ravel(), minlength=classes)
    return counts / max(1, counts.sum())
