"""Pen marks on a slide's glass, told from stained tissue by colour.

In haematoxylin and eosin green is the least of the three channels: at the scale of an overview hues lie
between violet and pink, 250 to 348 degrees (measured on images of TCGA, CAMELYON, TNBC and OCDC; B. A.
Schreiber et al., "Rapid artefact removal and H&E-stained tissue segmentation", Scientific Reports 14:309,
2024, build on the same). So strong greens and blues, strong pure reds, and what is dark without a colour are
pens: one gate for each, as in IBM's deep-histopath (https://github.com/CODAIT/deep-histopath,
`wsi/filter.py`), but of hue and saturation where that lists RGB values.
Brown and yellow have no gate: DAB, bile and melanin have those colours; nor have violet and pink.
A stain of an ink's very colour, such as the blue of a trichrome, counts where other tissue is near, as ink
does; on a slide that has no other stain, run without a tissue mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histoseg.morphology import grow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Mask, Pixels

# Hues in degrees, saturation, value and chroma from 0 to 255.
GREEN_TO_BLUE = (60, 235)
GREEN_TO_BLUE_SATURATION = 90
RED = (348, 12)
RED_SATURATION = 150
BLACK_VALUE, BLACK_CHROMA = 160, 32
# The rim of a stroke fades into the glass: paler than its gate, but of the same hue to within this.
RIM_DEGREES = 8


def find_ink(rgb: Pixels, threshold: float, rim_px: float) -> Mask:
    """Return where pen marks lie, with their rims, `(height, width)`.

    Tissue may hold such colours here and there: what is ink and what is only like it, its place must tell.

    Args:
        rgb: `(height, width, 3)`, white where there is glass.
        threshold: Saturation that glass does not exceed.
        rim_px: How far a rim reaches from the stroke.
    """
    import cv2

    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
    hue, saturation, value = hsv[..., 0].astype(np.int16) * 2, hsv[..., 1], hsv[..., 2]
    black = (value < BLACK_VALUE) & (value - rgb.min(axis=2) < BLACK_CHROMA)
    ink = black
    for hues, least in ((GREEN_TO_BLUE, GREEN_TO_BLUE_SATURATION), (RED, RED_SATURATION)):
        stroke = _has_hue(hue, *hues) & (saturation >= least) & ~black
        rim = _has_hue(hue, hues[0] - RIM_DEGREES, hues[1] + RIM_DEGREES) & (saturation > threshold)
        ink = ink | stroke | (rim & grow(stroke, rim_px))
    return grow(ink, 1.5)  # the last pixel of a rim is half glass, of any hue


def _has_hue(hue: NDArray[np.int16], begin: int, end: int) -> Mask:
    """Tell which hues lie from `begin` to `end` degrees, through 0 where `end` is the less."""
    if begin <= end:
        return np.asarray((hue >= begin) & (hue <= end), np.bool_)
    return np.asarray((hue >= begin) | (hue <= end), np.bool_)
