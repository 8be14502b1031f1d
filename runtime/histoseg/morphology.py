"""Masks grown and shrunk by exact disks of any radius, at a cost that does not depend on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from histoseg.arrays import Mask


def grow(mask: Mask, radius_px: float) -> Mask:
    """Return what lies within `radius_px` of a mask."""
    import cv2

    if not mask.any():
        return mask
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= radius_px, np.bool_)


def shrink(mask: Mask, radius_px: float) -> Mask:
    """Return what lies further than `radius_px` inside a mask; the picture's border is no edge of it."""
    return ~grow(~mask, radius_px)
