"""How an image is coloured, and giving one the colours of another: stains and scanners that were really seen.

The colours of tissue are taken as a normal distribution of optical densities. Between two of these lies the
map of Pitie and Kokaram 2007, "The linear Monge-Kantorovitch linear colour mapping for example-based colour
transfer", https://doi.org/10.1049/cp:20070055: of all linear maps that turn one into the other it moves
colours the least, so that nuclei stay what they are among their surroundings. To draw looks from those that a
training set has is what Shen et al. 2022, https://arxiv.org/abs/2206.12694, do with mean and deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DENSITY_OF_LEVEL = -np.log((np.arange(256) + 1.0) / 256.0).astype(np.float32)

# Pixels that let more light through, in the mean of the channels, are glass.
LEAST_DENSITY = 0.1
# What has less tissue has no look of its own.
LEAST_PIXELS = 1000
# Added to each variance, so that an image of almost one colour has a look, too; about that of sensor noise.
FLOOR = 1e-3


@dataclass(frozen=True)
class Look:
    """The distribution of the optical densities of tissue in red, green and blue."""

    mean: NDArray[np.float64]
    """`(3,)`."""
    covariance: NDArray[np.float64]
    """`(3, 3)`."""


# Of every source those of its images.
Looks = Sequence[Sequence[Look]]


def measure_look(rgb: NDArray[np.uint8]) -> Look | None:
    """Return the look of an image `(h, w, 3)`, or `None` where it shows too little tissue."""
    density = DENSITY_OF_LEVEL[rgb].reshape(-1, 3)
    tissue = density[density.mean(axis=1) > LEAST_DENSITY].astype(np.float64)
    if len(tissue) < LEAST_PIXELS:
        return None
    return Look(tissue.mean(axis=0), np.cov(tissue.T) + FLOOR * np.eye(3))


def change_look(rgb: NDArray[np.uint8], before: Look, after: Look, *, share: float) -> NDArray[np.uint8]:
    """Return an image with colours on the way from its look to another one.

    Args:
        rgb: `uint8` `(h, w, 3)`.
        before: Its look, or that of the image it was cut from.
        after: Another one.
        share: How far to go, 0 for nowhere and 1 for all the way.

    Returns:
        `uint8`, the shape of `rgb`.
    """
    matrix = (1 - share) * np.eye(3) + share * _map_covariance(before.covariance, after.covariance)
    shift = (1 - share) * before.mean + share * after.mean - before.mean @ matrix
    return to_levels(DENSITY_OF_LEVEL[rgb] @ matrix.astype(np.float32) + shift.astype(np.float32))


def to_levels(density: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return the levels of optical densities, of which `DENSITY_OF_LEVEL` holds those."""
    return np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.uint8)


def _map_covariance(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the symmetric matrix `T` with `T before T = after`."""
    root = _take_root(before)
    inverse = np.linalg.inv(root)
    return inverse @ _take_root(root @ after @ root) @ inverse


def _take_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
