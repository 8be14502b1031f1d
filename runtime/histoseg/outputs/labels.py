"""`labels.tif`: the classes as a tiled, lossless, pyramidal OME-TIFF with um/px, class names and a palette.

Pixels are class indices, uint8; the palette gives viewers the class colours. Each level is the majority of
the level above.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoseg.colors import parse_color
from histoseg.outputs.ome import CLASS_COLORS, CLASS_NAMES, OmeImage, build_ome_xml
from histoseg.outputs.pyramid import COLOR_MAP, PHOTOMETRIC, Frame, TilePyramid, split_blocks
from histoseg.outputs.tiff import Entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels

PALETTE = 3


class LabelPyramid(TilePyramid):
    """Writes `labels.tif` from bands of labels. A context manager: leaving it unclosed removes the file."""

    def __init__(
        self,
        path: Path,
        m_size: tuple[int, int],
        spacing_um_px: tuple[float, float],
        colors: tuple[str, ...],
        names: tuple[str, ...] = (),
    ) -> None:
        """Begin the file.

        Args:
            path: The TIFF.
            m_size: Width and height of level 0.
            spacing_um_px: um/px of level 0 along x and y.
            colors: `#rrggbb` of each class.
            names: Name of each class.

        Raises:
            OutputError: It cannot be written.
        """
        image = OmeImage(
            "labels",
            "Class of each pixel, by its index.",
            m_size,
            spacing_um_px,
            channels=[("class", None)],
            notes={CLASS_NAMES: names, CLASS_COLORS: colors} if names else {CLASS_COLORS: colors},
        )
        palette = [int(value) for value in build_palette(colors).ravel()]
        entries = {PHOTOMETRIC: Entry("short", [PALETTE]), COLOR_MAP: Entry("short", palette)}
        frame = Frame(m_size, spacing_um_px, 1, build_ome_xml(image), entries)
        super().__init__(path, frame, halve_labels)

    def add(self, m_y: int, labels: Labels) -> None:
        """Take the next rows.

        Raises:
            OutputError: They cannot be written.
        """
        del m_y  # bands come in order
        self.take(labels[..., np.newaxis])


def halve_labels(labels: Labels) -> Labels:
    """Return labels at half the size, by majority of each 2 x 2 block (odd borders are repeated)."""
    a, b, c, d = split_blocks(labels)
    # any value that occurs twice is a majority; with four different ones the top left stands
    result: Labels = np.where(c == d, c, np.where((b == c) | (b == d), b, a))
    return result


def build_palette(colors: tuple[str, ...]) -> NDArray[np.uint16]:
    """Return a TIFF colour map, `(3, 256)` uint16, from `#rrggbb` of each class; the rest is black."""
    palette = np.zeros((3, 256), np.uint16)
    for index, color in enumerate(colors):
        palette[:, index] = np.array(parse_color(color), np.uint16) * 257
    return palette
