"""Pen marks on a slide's glass, told from stained tissue by colour.

In haematoxylin and eosin green is the least of the three channels: at the scale of an overview hues lie
between violet and pink, 250 to 348 degrees (measured on images of TCGA, CAMELYON, TNBC and OCDC; B. A.
Schreiber et al., "Rapid artefact removal and H&E-stained tissue segmentation", Scientific Reports 14:309,
2024, build on the same). So strong greens and blues, strong pure reds, and what is dark without a colour may
be pens: one gate for each, as in IBM's deep-histopath (https://github.com/CODAIT/deep-histopath,
`wsi/filter.py`), but of hue and saturation where that lists RGB values.
Brown and yellow have no gate: DAB, bile and melanin have those colours; nor have violet and pink.
Haematoxylin alone, the counterstain of a negative immunostain, is blue on many scanners, yet paler than a
pen: by its absorbance (A. C. Ruifrok, D. A. Johnston, Anal. Quant. Cytol. Histol. 23:291, 2001) its
saturation stays below 140 as long as 30 % of the red light passes. Trichromes, Luxol blue, light green and
oil red have the very colour of an ink: `tissue` tells them by shape and amount.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histoseg.morphology import grow, shrink

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Mask, Pixels

# From which hue to which, in degrees, and from which saturation on, 0 to 255, a colour may be an ink's.
GATES = (((60, 200), 90), ((200, 235), 140), ((348, 12), 150))
# Value and chroma from 0 to 255. The blackest is a pen, or what scanners put around a slide.
BLACK_VALUE, BLACK_CHROMA, BLACKEST_VALUE = 160, 32, 64
# A stroke is no thinner: single dark nuclei are, where an overview shows them.
THINNEST_UM = 100.0
# The rim of a stroke fades into the glass: paler than its gate, but of the same hue to within this.
RIM_DEGREES, RIM_UM = 8, 100.0


@dataclass(frozen=True)
class Ink:
    """Where pen marks lie, with their rims: two masks, `(height, width)`, that share no pixel."""

    sure: Mask
    """Black, which no stained tissue is at the scale of an overview."""
    likely: Mask
    """Of a colour that pens have, and some stains too."""


def find_ink(rgb: Pixels, threshold: float, um_px: float) -> Ink:
    """Return what has the colour of a pen.

    Tissue may hold such colours here and there: what is ink and what is only like it, its place must tell.

    Args:
        rgb: `(height, width, 3)`, white where there is glass.
        threshold: Saturation that glass does not exceed.
        um_px: um/px of `rgb`.
    """
    import cv2

    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
    hue, saturation, value = hsv[..., 0].astype(np.int16) * 2, hsv[..., 1], hsv[..., 2]
    rim_px, thin_px = RIM_UM / um_px, THINNEST_UM / 2 / um_px
    black = (value < BLACK_VALUE) & (value - rgb.min(axis=2) < BLACK_CHROMA)
    sure = black & grow(black & (value < BLACKEST_VALUE), rim_px)
    likely = black & ~sure
    for (begin, end), least in GATES:
        strong = _has_hue(hue, begin, end) & (saturation >= least) & ~black
        if not strong.any():
            continue
        stroke = strong & grow(shrink(strong, thin_px), thin_px)
        rim = _has_hue(hue, begin - RIM_DEGREES, end + RIM_DEGREES) & (saturation > threshold)
        likely = likely | stroke | (rim & grow(stroke, rim_px))
    # the last pixel of a rim is half glass, of any hue
    sure = grow(sure, 1.5)
    return Ink(sure, grow(likely, 1.5) & ~sure)


def _has_hue(hue: NDArray[np.int16], begin: int, end: int) -> Mask:
    """Tell which hues lie from `begin` to `end` degrees, through 0 where `end` is the less."""
    if begin <= end:
        return np.asarray((hue >= begin) & (hue <= end), np.bool_)
    return np.asarray((hue >= begin) | (hue <= end), np.bool_)
