"""A picture of the whole slide, small enough to look at and to find tissue on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from histoseg.arrays import Pixels
    from histoseg.slide import Slide

# An overview is read in strips of at most this many pixels: 12 MB of RGB.
OVERVIEW_STRIP_PX = 1 << 22


def read_overview(slide: Slide, max_side_px: int) -> Pixels:
    """Return the whole slide as RGB of at most `max_side_px` on its longer side, averaged over areas.

    Reads strip by strip from the coarsest sufficient level: memory stays fixed for a slide of one level.
    """
    import cv2

    level = max(
        (i for i, size in enumerate(slide.level_sizes) if i == 0 or max(size) >= max_side_px), default=0
    )
    width, height = slide.level_sizes[level]
    factor = max(1.0, max(width, height) / max_side_px)
    out_w, out_h = max(1, int(width / factor)), max(1, int(height / factor))
    overview = np.empty((out_h, out_w, 3), np.uint8)
    strip = max(1, int(OVERVIEW_STRIP_PX / width / factor))
    for top in range(0, out_h, strip):
        bottom = min(out_h, top + strip)
        y0, y1 = top * height // out_h, max(top * height // out_h + 1, bottom * height // out_h)
        pixels = slide.read_level(level, 0, y0, width, y1 - y0)
        overview[top:bottom] = cv2.resize(pixels, (out_w, bottom - top), interpolation=cv2.INTER_AREA)
    return overview
