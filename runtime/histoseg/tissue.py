"""Which tiles hold tissue: a mask drawn on an overview of the slide.

Tissue is what is more colourful than the glass around it: Otsu's threshold (N. Otsu, 1979) on the saturation
of the smoothed overview, kept low enough for pale tissue. The mask is closed, freed of specks and grown by
a margin, so that thin rims and the surroundings of tissue still run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histoseg.grid import Grid, Tile
from histoseg.slide import Slide, read_overview

if TYPE_CHECKING:
    from histoseg.arrays import Mask, Pixels

OVERVIEW_PX = 2048
# Saturation (0 to 255) of clean glass stays below the first, of stained tissue exceeds the second.
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 8, 25
# Glass is bright; what is this dark without colour is a fold, ink or carbon: let the model see it.
DARK_VALUE = 160


@dataclass(frozen=True)
class TissueMask:
    """Where tissue lies, on an overview that spans the whole slide."""

    mask: Mask
    """`(height, width)` of the overview."""

    @property
    def coverage(self) -> float:
        """Fraction of the slide's area inside the mask."""
        return float(self.mask.mean())

    def touches(self, tile: Tile, grid: Grid) -> bool:
        """Tell whether a tile's write region holds any tissue."""
        (height, width), (m_width, m_height) = self.mask.shape, grid.m_size
        x0, y0, x1, y1 = tile.m_write
        rows = slice(y0 * height // m_height, max(y0 * height // m_height + 1, -(-y1 * height // m_height)))
        columns = slice(x0 * width // m_width, max(x0 * width // m_width + 1, -(-x1 * width // m_width)))
        return bool(self.mask[rows, columns].any())


def find_tissue(slide: Slide) -> TissueMask:
    """Draw the tissue mask of a slide.

    Raises:
        SlideError: The slide is damaged.
    """
    return TissueMask(detect_tissue(read_overview(slide, OVERVIEW_PX)))


def detect_tissue(overview: Pixels) -> Mask:
    """Return where an RGB overview, `(height, width, 3)` uint8, shows tissue."""
    import cv2

    side = max(overview.shape[:2])
    kernel = max(3, side // 300 | 1)
    smooth = cv2.medianBlur(overview, 5) if min(overview.shape[:2]) >= 5 else overview
    hsv = cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV)
    saturation, value = hsv[..., 1], hsv[..., 2]
    otsu, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    threshold = float(np.clip(otsu / 2, LOWEST_THRESHOLD, HIGHEST_THRESHOLD))
    mask = ((saturation > threshold) | (value < DARK_VALUE)).astype(np.uint8)
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (kernel, kernel))
    closed = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disk), np.uint8)
    mask = _drop_specks(closed, smallest=max(1, (side // 400) ** 2))
    return np.asarray(cv2.dilate(mask, disk)) > 0


def _drop_specks(mask: Pixels, *, smallest: int) -> Pixels:
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= smallest
    keep[0] = False
    return np.asarray(keep[labels], np.uint8)
