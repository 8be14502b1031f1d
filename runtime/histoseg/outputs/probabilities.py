"""`probabilities.tif`: what the model gives each class, as a pyramidal OME-TIFF with a channel for each.

Pixels are uint8: 255 times the probability, rounded, half to even; 0 where nothing ran. Each level is the
mean of the level above. Of two classes only the second is written: the first is its complement.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoseg.outputs.ome import OmeImage, build_ome_xml
from histoseg.outputs.pyramid import PHOTOMETRIC, Frame, TilePyramid, split_blocks
from histoseg.outputs.tiff import Entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Floats

MIN_IS_BLACK = 1


class ProbabilityPyramid(TilePyramid):
    """Writes `probabilities.tif` from bands. A context manager: leaving it unclosed removes the file."""

    def __init__(
        self,
        path: Path,
        m_size: tuple[int, int],
        spacing_um_px: tuple[float, float],
        *,
        names: tuple[str, ...],
        colors: tuple[str, ...],
    ) -> None:
        """Begin the file.

        Args:
            path: The TIFF.
            m_size: Width and height of level 0.
            spacing_um_px: um/px of level 0 along x and y.
            names: Name of each class.
            colors: `#rrggbb` of each class.

        Raises:
            OutputError: It cannot be written.
        """
        self._first = 1 if len(names) == 2 else 0
        image = OmeImage(
            "probabilities",
            "Probability of each class, 0 to 255 for 0 to 1.",
            m_size,
            spacing_um_px,
            channels=list(zip(names, colors, strict=True))[self._first :],
        )
        entries = {PHOTOMETRIC: Entry("short", [MIN_IS_BLACK])}
        frame = Frame(m_size, spacing_um_px, len(image.channels), build_ome_xml(image), entries)
        super().__init__(path, frame, halve_probabilities)

    def add(self, m_y: int, probabilities: NDArray[np.uint8]) -> None:
        """Take the next rows, `(rows, width, classes)` uint8, of all classes; see `quantize_probabilities`.

        Raises:
            OutputError: They cannot be written.
        """
        del m_y  # bands come in order
        self.take(probabilities[..., self._first :])


def quantize_probabilities(probabilities: Floats) -> NDArray[np.uint8]:
    """Return 255 times the probability, rounded, half to even, as uint8."""
    scaled = probabilities * np.float32(255)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)


def halve_probabilities(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the rounded mean of each 2 x 2 block, half up (odd borders are repeated)."""
    a, b, c, d = split_blocks(values)
    total = np.add(a, b, dtype=np.uint16)
    for part in (c, d):
        total += part
    total += 2
    total >>= 2
    return total.astype(np.uint8)
