"""Means of areas of pixels, on a grid that does not depend on how a slide is cut into reads.

Every output pixel is computed by itself, with the same additions in the same order wherever a read begins:
two reads that overlap agree to the last bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Floats, Pixels

# As many rows at a time as stay in the processor's cache.
SLAB_ROWS = 32
# Pixels: an area that reaches this little into a pixel only does so by rounding.
TOUCH = 1e-9


def reflect_indices(start: int, count: int, length: int) -> NDArray[np.intp]:
    """Return `count` indices from `start` on, mirrored into `[0, length)` without repeating the border."""
    indices = np.arange(start, start + count)
    if length == 1:
        return np.zeros(count, np.intp)
    period = 2 * (length - 1)
    indices = np.abs(indices) % period
    return np.minimum(indices, period - indices)


def average_blocks(pixels: Pixels, span_x: int, span_y: int, width: int, height: int) -> Pixels:
    """Return the means of blocks of `span_x` x `span_y` pixels, `(height, width, 3)` uint8.

    A last block that is cut by the slide's border is the mean of what there is of it.
    """
    import cv2

    means = np.empty((height, width, 3), np.uint8)
    rows, columns = pixels.shape[0] // span_y, pixels.shape[1] // span_x
    if rows and columns:
        whole = pixels[: rows * span_y, : columns * span_x]
        means[:rows, :columns] = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
    if rows < height:
        low = average_areas(pixels[rows * span_y :], (0, 0), (0, 0), (span_x, span_y), (width, 1))
        means[rows:] = low
    if columns < width:
        right = average_areas(pixels[:, columns * span_x :], (0, 0), (0, 0), (span_x, span_y), (1, height))
        means[:, columns:] = right
    return means


def average_areas(
    pixels: Pixels,
    corner: tuple[int, int],
    m_corner: tuple[int, int],
    span: tuple[float, float],
    size: tuple[int, int],
) -> Pixels:
    """Average areas of `span` pixels, partly covered ones by their share.

    Output pixel `i` of the slide is the mean over `[i * span, (i + 1) * span)`, as far as there are pixels.
    A span below 1 enlarges.

    Args:
        pixels: `(height, width, 3)`, all that the output covers.
        corner: x and y of `pixels` in the slide.
        m_corner: x and y of the output in the slide, in output pixels.
        span: Pixels that one output pixel spans along x and y.
        size: Width and height of the output.

    Returns:
        `(height, width, 3)` uint8.
    """
    import cv2

    rows = _average_rows(pixels, *_share_rows(len(pixels), corner[1], m_corner[1], span[1], size[1]))
    turned = np.asarray(cv2.transpose(rows), np.float32)
    columns = _average_rows(turned, *_share_rows(len(turned), corner[0], m_corner[0], span[0], size[0]))
    return np.asarray(cv2.transpose(np.rint(columns, out=columns).astype(np.uint8)), np.uint8)


def _share_rows(
    length: int, corner: int, m_corner: int, span: float, count: int
) -> tuple[NDArray[np.intp], Floats]:
    """Return the first row that each output row covers, and its share of it and of those below, `(count, n)`.

    The shares of one output row add up to 1. They are computed from places in the slide, not in the read:
    not even rounding tells how the slide was cut.
    """
    edges = np.arange(m_corner, m_corner + count + 1) * span
    starts, ends = edges[:-1, None], edges[1:, None]
    rows = np.floor(starts + TOUCH).astype(np.intp) + np.arange(math.ceil(span) + 1)
    covered = np.minimum(rows + 1, ends) - np.maximum(rows, starts)
    covered[(covered < TOUCH) | (rows >= corner + length)] = 0
    shares = covered / covered.sum(axis=1, keepdims=True)
    return rows[:, 0] - corner, shares.astype(np.float32)


def _average_rows(pixels: Pixels | Floats, first: NDArray[np.intp], shares: Floats) -> Floats:
    """Return weighted means of rows, float32 `(rows, width, 3)`."""
    means = np.empty((len(first), *pixels.shape[1:]), np.float32)
    for top in range(0, len(first), SLAB_ROWS):
        slab = slice(top, top + SLAB_ROWS)
        _average_slab(pixels, first[slab], shares[slab], means[slab].reshape(len(means[slab]), -1))
    return means


def _average_slab(pixels: Pixels | Floats, first: NDArray[np.intp], shares: Floats, means: Floats) -> None:
    """Fill `means`, `(rows, width * 3)`."""
    top, bottom = int(first[0]), min(len(pixels), int(first[-1]) + shares.shape[1])
    slab = pixels[top:bottom].reshape(bottom - top, -1).astype(np.float32)
    taken = np.empty_like(means)
    np.take(slab, first - top, axis=0, out=means, mode="clip")
    means *= shares[:, :1]
    for tap in range(1, shares.shape[1]):
        np.take(slab, first - top + tap, axis=0, out=taken, mode="clip")
        taken *= shares[:, tap, None]
        means += taken
