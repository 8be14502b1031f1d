"""`overlay.png`: the slide with the classes drawn over it, at a size a person can look at.

Regions get a coloured outline and a light tint. Where the picture is so much smaller than the slide that
objects shrink below a few pixels, the tint follows the share of the area that a class covers.
"""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from histoseg.colors import parse_color
from histoseg.errors import OutputError
from histoseg.outputs.report.picture import Glance
from histoseg.outputs.rows import RowBlocks
from histoseg.overview import OverviewBuilder

if TYPE_CHECKING:
    from histoseg.arrays import Labels, Mask, Pixels
    from histoseg.slide import Slide

LONG_SIDE_PX = 3000
SHORT_SIDE_PX = 512
# Drawing in float32 takes many times the memory of a picture: so strip by strip.
DRAW_ROWS = 128
# Up to this reduction a nucleus is still wide enough to have an outline.
OUTLINE_UP_TO = 4


class Overlay:
    """Draws `overlay.png` from bands of labels. Holds the picture's size, not the slide's."""

    def __init__(
        self,
        path: Path,
        slide: Slide,
        m_size: tuple[int, int],
        colors: tuple[str, ...],
        background: int,
        *,
        cancel: Event | None = None,
    ) -> None:
        """Prepare a picture of `slide`, which has `m_size` (width, height) model pixels."""
        self._path = path
        self._colors = np.array([parse_color(color) for color in colors], np.float32)
        self._background = background
        self._factor = -(-max(m_size) // LONG_SIDE_PX)
        width, height = (-(-side // self._factor) for side in m_size)
        self.overview = OverviewBuilder(slide, max(width, height), cancel=cancel)
        """The picture beneath; whoever has a slide that forgets its pixels lets it advance."""
        self._labels = np.full((height, width), background, np.uint8)
        self._shares = np.zeros((height, width), np.uint8)
        self._blocks = RowBlocks(self._factor)
        self._row = 0

    def add(self, m_y: int, labels: Labels) -> None:
        """Take the next rows."""
        del m_y  # bands come in order
        if self._factor == 1:
            self._copy(labels)
            return
        for block in self._blocks.push(labels):
            self._reduce(block)

    def close(self) -> None:
        """Draw and write the picture.

        Raises:
            CancelledError: The run was cancelled.
            OutputError: The file cannot be written.
            SlideError: The slide is damaged.
        """
        import cv2

        rest = self._blocks.rest()
        if rest is not None:
            self._reduce(rest)
        height, width = self._shares.shape
        rgb = cv2.resize(self.overview.finish(), (width, height), interpolation=cv2.INTER_AREA)
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

    def glance(self) -> Glance:
        """Return what the picture is drawn from; complete once closed, and the slide is not read again."""
        return Glance(self.overview.finish(), self._labels, self._shares)

    def _copy(self, labels: Labels) -> None:
        """Keep labels that have the picture's size."""
        rows = slice(self._row, self._row + len(labels))
        self._labels[rows] = labels
        self._shares[rows] = np.where(labels == self._background, np.uint8(0), np.uint8(255))
        self._row += len(labels)

    def _reduce(self, block: Labels) -> None:
        """Keep the most frequent class of each cell, the background aside, and its share of the cell."""
        labels, shares = self._labels[self._row], self._shares[self._row]
        factor, width = self._factor, len(labels)
        padded = np.pad(block, ((0, 0), (0, width * factor - block.shape[1])), mode="edge")
        cells = padded.reshape(len(block), width, factor)
        for index in np.unique(block):
            if index != self._background:
                share = np.rint((cells == index).mean(axis=(0, 2)) * 255).astype(np.uint8)
                more = share > shares
                labels[more], shares[more] = index, share[more]
        self._row += 1

    def _draw(self, picture: Pixels) -> Pixels:
        """Draw over a picture of the slide, in place."""
        outlined = self._factor <= OUTLINE_UP_TO
        for top in range(0, len(picture), DRAW_ROWS):
            self._tint(picture, slice(top, top + DRAW_ROWS), 0.25 if outlined else 0.7)
        if outlined:
            labels = np.where(self._shares > 127, self._labels, np.uint8(self._background))
            border = find_outline(labels, self._background)
            picture[border] = self._colors[labels[border]]
        return picture

    def _tint(self, picture: Pixels, rows: slice, opacity: float) -> None:
        touched = self._shares[rows] > 0
        share = self._shares[rows][touched, None].astype(np.float32) * np.float32(opacity / 255)
        under, color = picture[rows][touched].astype(np.float32), self._colors[self._labels[rows][touched]]
        picture[rows][touched] = np.rint(under + (color - under) * share)


def find_outline(labels: Labels, background: int) -> Mask:
    """Return the pixels of classes that have a 4-neighbour of another class, or of the background.

    The picture's own border does not count.
    """
    padded = np.pad(labels, 1, mode="edge")
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    outline = np.zeros(labels.shape, np.bool_)
    for neighbours in around:
        outline |= neighbours != labels
    outline &= labels != background
    return outline
