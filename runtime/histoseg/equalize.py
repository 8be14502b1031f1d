"""Contrast-limited adaptive histogram equalisation (CLAHE) of any region as if of the whole slide.

Zuiderveld 1994, Graphics Gems IV, as OpenCV does it on the lightness of Lab. Cells are laid from the slide's
upper left corner in model pixels, and pixels lie between the curves of the nearest four: a region that is
read with the cells around it comes out as it would from the whole slide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histoseg.errors import CardError

if TYPE_CHECKING:
    from histoseg.arrays import Pixels


@dataclass(frozen=True)
class Equalization:
    """How the contrast of a model's training pixels was equalised.

    Raises:
        CardError: A value is impossible; the message names the field.
    """

    clip_limit: float = 2.0
    """How steep a curve may be, relative to one that changes nothing."""
    cell_px: int = 128
    """Side of a cell in model pixels, a power of two, so that places between cells are exact."""

    def __post_init__(self) -> None:
        if not self.clip_limit > 0:
            raise CardError(f"field 'clip_limit' is {self.clip_limit}, expected more than 0")
        if self.cell_px < 16 or self.cell_px & (self.cell_px - 1):
            raise CardError(f"field 'cell_px' is {self.cell_px}, expected a power of two, 16 or more")


def widen(start: int, stop: int, size: int, cell: int) -> tuple[int, int]:
    """Return the pixels, of `size` along one axis, that decide what pixels `start` to `stop` become."""
    return max(0, start // cell - 1) * cell, min(size, (-(-stop // cell) + 1) * cell)


def equalize(rgb: Pixels, options: Equalization) -> Pixels:
    """Equalise pixels that begin at a corner of four cells.

    Args:
        rgb: `uint8` `(h, w, 3)`; what is missing to whole cells is mirrored.
        options: Cells and limit.

    Returns:
        `uint8`, the shape of `rgb`. Those next to a side that is no side of the slide are wrong by as much as
        a cell; see `widen`.
    """
    import cv2

    height, width = rgb.shape[:2]
    rest = -height % options.cell_px, -width % options.cell_px
    lab = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2LAB)
    whole = cv2.copyMakeBorder(lab[..., 0], 0, rest[0], 0, rest[1], cv2.BORDER_REFLECT_101)
    cells = whole.shape[1] // options.cell_px, whole.shape[0] // options.cell_px
    lab[..., 0] = cv2.createCLAHE(options.clip_limit, cells).apply(whole)[:height, :width]
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)
