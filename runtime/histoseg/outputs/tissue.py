"""`tissue.png`: where the run looked, white on black, over the whole slide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoseg.errors import OutputError

if TYPE_CHECKING:
    from histoseg.arrays import Mask


def write_tissue(path: Path, mask: Mask) -> None:
    """Write a mask, `(height, width)`, as a PNG of 0 and 255.

    Raises:
        OutputError: The file cannot be written.
    """
    import cv2

    ok, data = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    assert ok
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise OutputError(
            f"{path}: cannot write the tissue mask ({error}); free space or choose another -o"
        ) from error
