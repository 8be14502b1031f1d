"""Which tiles hold tissue: a mask drawn on an overview of the slide.

Tissue is what is more colourful than this slide's own glass: the saturation of the overview, with the glass
balanced to white, over a threshold as low as CLAM's (https://github.com/mahmoodlab/CLAM, `segmentTissue`:
saturation of 8 after a median), so that pale tissue and fat stay. The threshold comes from the glass alone:
neither dark tissue nor ink raises it, as they raise Otsu's. Pen marks (see `ink`) count where tissue is near,
which they may cover, and not on bare glass. Some stains have the colours of pens, and lost tissue is worse
than ink that runs: only what is slender, and less than the rest of the tissue, is left out as pen marks. The
mask is closed, freed of specks and grown by a margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.grid import Grid, Tile
from histoseg.ink import Ink, find_ink
from histoseg.morphology import grow, shrink
from histoseg.overview import read_overview

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Mask, Pixels
    from histoseg.slide import Slide

OVERVIEW_PX = 2048
# Finer than this an overview shows cells, which nobody asks for, and the noise of single pixels.
FINEST_UM_PX = 2.0
# A slide that states no um/px is taken for one of the usual size.
USUAL_SLIDE_UM = 25_000

MARGIN_UM = 100.0
# Fat is a mesh of membranes around cells as wide as this.
JOIN_UM = 100.0
SMALLEST_UM = 60.0
# Half a broad stroke of a felt pen: tissue on both of its sides keeps what is under it.
INK_REACH_UM = 750.0
# No disk as broad fits into a broad stroke, not even where it turns back.
BROADER_THAN_INK_UM = 2000.0
# From this share of what runs on, what was left out as pen marks is worth a word.
NOTEWORTHY = 0.01

# Saturation (0 to 255) that glass does not exceed, for the cleanest and for the dirtiest glass.
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 5.0, 20.0
# Glass is bright and almost grey, and the brightest of what is. Pure white was never scanned.
GLASS_DARKEST, GLASS_CHROMA, GLASS_LEAST_SHARE = 200, 16, 1e-3
GLASS_SPREAD = 10
# What glass is balanced to, at least: noise must not be cut off at 255.
WHITE = 240


@dataclass(frozen=True)
class TissueMask:
    """Where tissue lies, on an overview that spans the whole slide."""

    mask: Mask
    """`(height, width)` of the overview."""
    um_px: tuple[float, float]
    """um/px of the overview along x and y."""
    margin_um: float
    """By how much the mask reaches beyond tissue."""
    threshold: float
    """Saturation, 0 to 255, from which a pixel is tissue."""
    ink: float
    """Fraction of the slide's area that was left out as pen marks or black."""

    @property
    def coverage(self) -> float:
        """Fraction of the slide's area inside the mask."""
        return float(self.mask.mean())

    @property
    def note(self) -> str | None:
        """What a person should know of what was left out; `None` where it is next to nothing."""
        if self.ink <= NOTEWORTHY * self.coverage:
            return None
        return (
            f"pen marks or black left out: {100 * self.ink:.2f} % of the slide (--no-tissue runs every tile)"
        )

    def touches(self, tile: Tile, grid: Grid) -> bool:
        """Tell whether a tile's write region holds any tissue."""
        (height, width), (m_width, m_height) = self.mask.shape, grid.m_size
        x0, y0, x1, y1 = tile.m_write
        rows = slice(y0 * height // m_height, max(y0 * height // m_height + 1, -(-y1 * height // m_height)))
        columns = slice(x0 * width // m_width, max(x0 * width // m_width + 1, -(-x1 * width // m_width)))
        return bool(self.mask[rows, columns].any())

    def report(self) -> dict[str, Any]:
        """Return what a report says of the mask."""
        return {
            "coverage": self.coverage,
            "ink": self.ink,
            "note": self.note,
            "margin_um": self.margin_um,
            "threshold": self.threshold,
            "size_px": [self.mask.shape[1], self.mask.shape[0]],
            "um_px": list(self.um_px),
        }


def find_tissue(
    slide: Slide,
    *,
    spacing_um_px: tuple[float, float] | None = None,
    margin_um: float = MARGIN_UM,
    cancel: Event | None = None,
) -> TissueMask:
    """Draw the tissue mask of a slide.

    Args:
        slide: Any slide.
        spacing_um_px: Level-0 um/px along x and y, over what the slide states.
        margin_um: By how much the mask reaches beyond tissue; at least one pixel of the overview.
        cancel: Once it is set, reading stops.

    Raises:
        CancelledError: `cancel` was set.
        SlideError: The slide is damaged.
    """
    l0_size = slide.level_sizes[0]
    usual = USUAL_SLIDE_UM / max(l0_size)
    spacing = spacing_um_px or slide.spacing_um_px or (usual, usual)
    l0_um = [side * um for side, um in zip(l0_size, spacing, strict=True)]
    longest = max(1, min(OVERVIEW_PX, max(l0_size), math.ceil(max(l0_um) / FINEST_UM_PX)))
    overview = read_overview(slide, longest, cancel=cancel)
    height, width = overview.shape[:2]
    return detect_tissue(overview, (l0_um[0] / width, l0_um[1] / height), margin_um=margin_um)


def detect_tissue(
    overview: Pixels, um_px: tuple[float, float], *, margin_um: float = MARGIN_UM
) -> TissueMask:
    """Draw the tissue mask on an RGB overview, `(height, width, 3)` uint8; see `find_tissue`."""
    import cv2

    um = min(um_px)
    rgb = np.asarray(cv2.medianBlur(overview, 3), np.uint8)
    glass = _find_glass(rgb)
    rgb = rgb if glass is None else _balance(rgb, glass)
    saturation = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV), np.uint8)[..., 1]
    threshold = _choose_threshold(rgb, saturation)
    stained, nothing = saturation > threshold, np.zeros(rgb.shape[:2], np.bool_)
    # where no glass is, nothing is known to lie on it
    found = Ink(nothing, nothing) if glass is None else find_ink(rgb, threshold, um)
    tissue, ink = _tell_from_ink(stained, found, um)
    mask = grow(tissue, max(1.0, margin_um / um))
    return TissueMask(mask, um_px, margin_um, threshold, ink=float((ink & ~mask).mean()))


def _tell_from_ink(stained: Mask, ink: Ink, um: float) -> tuple[Mask, Mask]:
    """Return tissue, with the ink that may cover some, and the ink beside it."""
    strokes = ink.likely & ~_find_broad(ink.likely, um)
    tissue, beside = _lay_ink(stained, ink.sure | strokes, um)
    if (beside & strokes).sum() > (tissue & ~ink.sure & ~strokes).sum():
        return _lay_ink(stained, ink.sure, um)
    return tissue, beside


def _lay_ink(stained: Mask, ink: Mask, um: float) -> tuple[Mask, Mask]:
    """Return tissue, with the ink near it, and the ink that is far from any."""
    tissue = _clean(stained & ~ink, um)
    near = ink & grow(tissue, INK_REACH_UM / um)
    return tissue | near, ink & ~near


def _find_broad(mask: Mask, um: float) -> Mask:
    """Return the parts of a mask that are broader somewhere than a stroke is, gaps included."""
    import cv2

    if not mask.any():
        return mask
    joined = _close(mask, um)
    _, labels = cv2.connectedComponents(joined.astype(np.uint8), connectivity=8)
    broad = np.unique(labels[shrink(joined, BROADER_THAN_INK_UM / 2 / um)])
    return np.asarray(np.isin(labels, broad[broad > 0]), np.bool_)


def _find_glass(rgb: Pixels) -> Floats | None:
    """Return the colour of clean glass, or `None` where there is none.

    It is no matter how much pale tissue there is: tissue only ever takes light away.
    """
    darkest, brightest = rgb.min(axis=2), rgb.max(axis=2)
    near = (darkest >= GLASS_DARKEST) & (brightest - darkest <= GLASS_CHROMA) & (darkest < 255)
    if near.mean() < GLASS_LEAST_SHARE:
        return None
    clean = np.percentile(darkest[near], 95)
    return np.asarray(np.median(rgb[near & (darkest >= clean - GLASS_SPREAD)], axis=0), np.float32)


def _balance(rgb: Pixels, glass: Floats) -> Pixels:
    """Make glass white, and leave white what is: no channel loses by it."""
    import cv2

    table = np.arange(256)[:, None] * max(WHITE, glass.max()) / glass
    return np.asarray(cv2.LUT(rgb, np.rint(table).clip(0, 255).astype(np.uint8).reshape(1, 256, 3)), np.uint8)


def _choose_threshold(rgb: Pixels, saturation: Pixels) -> float:
    """Return four times the saturation that glass, balanced to white, has by noise and dirt."""
    glass = saturation[rgb.min(axis=2) >= WHITE - GLASS_SPREAD]
    usual = float(np.median(glass)) if glass.size else 0.0
    return float(np.clip(4 * usual, LOWEST_THRESHOLD, HIGHEST_THRESHOLD))


def _clean(mask: Mask, um: float) -> Mask:
    """Close gaps and drop specks."""
    import cv2

    joined = _close(mask, um)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(joined.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= (SMALLEST_UM / um) ** 2
    keep[0] = False
    return np.asarray(keep[labels], np.bool_)


def _close(mask: Mask, um: float) -> Mask:
    return shrink(grow(mask, JOIN_UM / 2 / um), JOIN_UM / 2 / um)
