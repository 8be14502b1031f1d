"""Changes to masks before training. Images stay as they are: what changes those is the runtime's too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from histoseg.arrays import Labels


def dilate_labels(labels: Labels, radius_px: float, *, background: int = 0) -> Labels:
    """Grow every class into the background around it; where two meet, each takes what is nearer to it.

    For outlines that were drawn inside of what they mean, and for nuclei marked by their centres.

    Args:
        labels: Class indices `(h, w)`.
        radius_px: How far, from pixel centre to pixel centre; less than 1 changes nothing.
        background: The class that gives way.

    Returns:
        Class indices `(h, w)`.
    """
    import cv2

    empty = labels == background
    if radius_px < 1 or empty.all() or not empty.any():
        return labels
    distance, nearest = cv2.distanceTransformWithLabels(
        empty.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    # OpenCV numbers the pixels of the classes itself
    table = np.full(int(nearest.max()) + 1, background, np.uint8)
    table[nearest[~empty]] = labels[~empty]
    return np.where(distance <= radius_px, table[nearest], background).astype(np.uint8)
