"""`overlay.png`: the slide with the classes drawn over it, at a size a person can look at.

Regions get a coloured outline and a light tint. Where the picture is so much smaller than the slide that
objects shrink below a few pixels, the tint follows the share of the area that a class covers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoseg.errors import OutputError
from histoseg.outputs.rows import RowBlocks
from histoseg.slide import Slide, read_overview

if TYPE_CHECKING:
    from histoseg.arrays import Labels, Mask, Pixels

LONG_SIDE_PX = 3000
SHORT_SIDE_PX = 512
# Up to this reduction a nucleus is still wide enough to have an outline.
OUTLINE_UP_TO = 4


class Overlay:
    """Draws `overlay.png` from bands of labels. Holds the picture's size, not the slide's."""

    def __init__(
        self, path: Path, slide: Slide, m_size: tuple[int, int], colors: tuple[str, ...], background: int
    ) -> None:
        """Prepare a picture of `slide`, which has `m_size` (width, height) model pixels."""
        self._path = path
        self._slide = slide
        self._colors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colors], np.float32)
        self._background = background
        self._factor = -(-max(m_size) // LONG_SIDE_PX)
        width, height = (-(-side // self._factor) for side in m_size)
        self._shares = np.zeros((len(colors), height, width), np.uint8)
        self._blocks = RowBlocks(self._factor)
        self._row = 0

    def add(self, m_y: int, labels: Labels) -> None:
        """Take the next rows."""
        del m_y  # bands come in order
        for block in self._blocks.push(labels):
            self._reduce(block)

    def close(self) -> None:
        """Draw and write the picture.

        Raises:
            OutputError: The file cannot be written.
        """
        import cv2

        rest = self._blocks.rest()
        if rest is not None:
            self._reduce(rest)
        height, width = self._shares.shape[1:]
        rgb = cv2.resize(
            read_overview(self._slide, max(width, height)), (width, height), interpolation=cv2.INTER_AREA
        )
        picture = self._draw(np.asarray(rgb, np.uint8))
        enlarge = -(-SHORT_SIDE_PX // max(width, height))
        if enlarge > 1:
            picture = np.repeat(np.repeat(picture, enlarge, axis=0), enlarge, axis=1)
        ok, data = cv2.imencode(".png", picture[..., ::-1])
        assert ok
        try:
            self._path.write_bytes(data.tobytes())
        except OSError as error:
            raise OutputError(
                f"{self._path}: cannot write the overlay ({error}); free space or choose another -o"
            ) from error

    def _reduce(self, block: Labels) -> None:
        factor, width = self._factor, self._shares.shape[2]
        padded = np.pad(block, ((0, 0), (0, width * factor - block.shape[1])), mode="edge")
        cells = padded.reshape(len(block), width, factor)
        for index in range(len(self._shares)):
            self._shares[index, self._row] = np.rint((cells == index).mean(axis=(0, 2)) * 255)
        self._row += 1

    def _draw(self, rgb: Pixels) -> Pixels:
        picture = rgb.copy()
        outlined = self._factor <= OUTLINE_UP_TO
        strength = 0.25 if outlined else 0.7
        for index, share in enumerate(self._shares):
            if index == self._background:
                continue
            touched = share > 0
            opacity = share[touched, None].astype(np.float32) * np.float32(strength / 255)
            under = picture[touched].astype(np.float32)
            picture[touched] = np.rint(under + (self._colors[index] - under) * opacity)
            if outlined:
                picture[find_outline(share > 127)] = self._colors[index]
        return picture


def find_outline(region: Mask) -> Mask:
    """Return the pixels of a region that touch its outside (4-neighbours), its own border apart."""
    padded = np.pad(region, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inner
