"""A region of interest: where on the slide the model runs, drawn by a person.

QuPath GeoJSON, ImageScope XML or a mask, read row by row like a truth: an area of any class counts, and of a
mask every pixel that is not 0, or not black.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from histoseg.annotations import fill_region, is_annotation_file, load_regions
from histoseg.errors import AnnotationError, RoiError, TruthError
from histoseg.masks import fit_mask, open_mask

if TYPE_CHECKING:
    from histoseg.arrays import Mask
    from histoseg.grid import Grid
    from histoseg.scale import Scale

    Size = tuple[int, int]
    ReadRows = Callable[[int, int], Mask]

# Rows that are looked at together when tiles are chosen.
SCAN_ROWS = 64


class Roi:
    """A region of interest seen at the model's um/px. A context manager."""

    def __init__(self, read: ReadRows, close: Callable[[], None], m_rows: tuple[int, int]) -> None:
        """Wrap a reader of rows; use `open_roi`."""
        self._read = read
        self._close = close
        self.m_rows = m_rows
        """First row that may be inside, and the one after the last."""

    def __enter__(self) -> Self:
        """Return the region itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._close()

    def read(self, m_y: int, count: int) -> Mask:
        """Return where `count` model rows from `m_y` on lie inside, `(count, width)`.

        Raises:
            RoiError: The file is damaged here.
        """
        try:
            return self._read(m_y, count)
        except Exception as error:  # each codec has errors of its own
            raise RoiError(f"the region of interest is damaged ({error}); write it again") from error


def open_roi(path: Path, scale: Scale, l0_size: Size) -> Roi:
    """Open a region of interest.

    Args:
        path: GeoJSON, ImageScope XML, or a mask as PNG, JPEG or TIFF.
        scale: How the model's pixels lie on the slide.
        l0_size: Width and height of the slide at level 0.

    Raises:
        RoiError: The file cannot be read, does not fit the slide, or holds nothing inside it.
    """
    try:
        return _open_regions(path, scale) if is_annotation_file(path) else _open_mask(path, scale, l0_size)
    except (AnnotationError, TruthError) as error:
        raise RoiError(f"region of interest: {error}") from error


def choose_tiles(grid: Grid, roi: Roi) -> Mask:
    """Return which tiles write at least one pixel inside, `(rows, columns)` of the grid.

    Holds a few rows of the slide at a time.

    Raises:
        RoiError: No pixel of the slide lies inside, or the file is damaged.
    """
    runs = np.zeros((grid.y.count, grid.x.count), np.bool_)
    columns = [grid.x.write_range(column) for column in range(grid.x.count)]
    for row in range(grid.y.count):
        y0, y1 = grid.y.write_range(row)
        inside = np.zeros(grid.x.length, np.bool_)
        for top in range(max(y0, roi.m_rows[0]), min(y1, roi.m_rows[1]), SCAN_ROWS):
            inside |= roi.read(top, min(SCAN_ROWS, y1 - top)).any(axis=0)
        runs[row] = [inside[x0:x1].any() for x0, x1 in columns]
    if not runs.any():
        raise RoiError("region of interest: no pixel of the slide lies inside; expected one on this slide")
    return runs


def _open_regions(path: Path, scale: Scale) -> Roi:
    regions, (width, height) = load_regions(path), scale.m_size
    spans = np.array(
        [
            [min(ring[:, 1].min() for ring in region.rings), max(ring[:, 1].max() for ring in region.rings)]
            for region in regions
        ]
    )
    spans /= scale.l0_per_m[1]

    def read(m_y: int, count: int) -> Mask:
        rows = np.zeros((count, width), np.uint8)
        for index in np.flatnonzero((spans[:, 0] < m_y + count) & (spans[:, 1] > m_y)):
            fill_region(rows, regions[index], int(not regions[index].erases), scale=scale.l0_per_m, m_y=m_y)
        return rows.view(np.bool_)

    first, last = int(np.floor(spans[:, 0].min())), int(np.ceil(spans[:, 1].max()))
    return Roi(read, lambda: None, (max(0, first), min(height, last)))


def _open_mask(path: Path, scale: Scale, l0_size: Size) -> Roi:
    rows = open_mask(path, "region of interest")
    try:
        fit = fit_mask(path, rows.size, scale.m_size, l0_size, "region of interest")
    except TruthError:
        rows.close()
        raise
    # compression blurs black
    least = 128 if rows.lossy else 1

    def read(m_y: int, count: int) -> Mask:
        values = fit.read(rows, m_y, count)
        inside: Mask = (values if values.ndim == 2 else values.max(axis=-1)) >= least
        return inside

    return Roi(read, rows.close, (0, scale.m_size[1]))
