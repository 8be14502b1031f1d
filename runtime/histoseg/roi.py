"""A region of interest: where on the slide the model runs, drawn by a person.

QuPath GeoJSON, ImageScope XML or a mask, read row by row like a truth. An area of any class counts, negative
ones are cut out. Of a mask every value but 0 counts; of colours every one but black, whatever their alpha;
where compression is lossy, from 128 on in any channel. Palette pictures are read by index, unless the palette
is black and white.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from histoseg.annotations import is_annotation_file, load_regions
from histoseg.cancel import check_cancel
from histoseg.errors import AnnotationError, RoiError, TruthError
from histoseg.maskrows import Footprint, read_safely
from histoseg.masks import BYTES_PER_SLICE_PX, SLICE_PX, MaskFit, cut_rows, fit_mask, open_mask
from histoseg.outlines import Outlines

if TYPE_CHECKING:
    from histoseg.arrays import Mask
    from histoseg.grid import Grid
    from histoseg.maskrows import MaskRows, Size
    from histoseg.scale import Scale

    Box = tuple[int, int, int, int]

WHAT = "region of interest"
# Rows that are looked at together when tiles are chosen, and what they and their tiles may take.
SCAN_ROWS, SCAN_BYTES = 64, 32 << 20


class Roi:
    """A region of interest seen at the model's um/px. A context manager."""

    def __init__(
        self,
        path: Path,
        m_box: Box,
        read: Callable[[int, int, int, int], Mask],
        close: Callable[[], None] | None = None,
        footprint: Footprint | None = None,
    ) -> None:
        """Wrap a reader of rows; use `open_roi`."""
        self.path = path
        self.m_box = m_box
        """`(x0, y0, x1, y1)` model pixels, outside of which nothing is inside."""
        self.footprint = footprint or Footprint()
        """What it and its reading take of memory, beside the rows that are returned."""
        self._read = read
        self._close = close

    def __enter__(self) -> Self:
        """Return the region itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._close is not None:
            self._close()

    def read(self, m_y: int, count: int, m_x0: int, m_x1: int) -> Mask:
        """Return where `count` model rows from `m_y` on lie inside, `(count, m_x1 - m_x0)`.

        Raises:
            RoiError: The file is damaged here.
        """
        try:
            return read_safely(self.path, WHAT, partial(self._read, m_y, count, m_x0, m_x1))
        except TruthError as error:
            raise RoiError(str(error)) from error


def open_roi(path: Path, scale: Scale, l0_size: Size) -> Roi:
    """Open a region of interest.

    Args:
        path: GeoJSON, ImageScope XML, or a mask as PNG, JPEG or TIFF.
        scale: How the model's pixels lie on the slide.
        l0_size: Width and height of the slide at level 0.

    Raises:
        RoiError: The file cannot be read, or does not fit the slide.
    """
    try:
        return _open_regions(path, scale) if is_annotation_file(path) else _open_mask(path, scale, l0_size)
    except (AnnotationError, TruthError) as error:
        raise RoiError(f"{WHAT}: {error}") from error


def choose_tiles(grid: Grid, roi: Roi, *, cancel: Event | None = None) -> Mask:
    """Return which tiles write at least one pixel inside, `(rows, columns)` of the grid.

    Holds a few rows at a time, of as many columns as take little memory, and reads each pixel once, within
    `Roi.m_box`.

    Raises:
        CancelledError: `cancel` was set.
        RoiError: No pixel of the slide lies inside, or the file is damaged.
    """
    runs = np.zeros((grid.y.count, grid.x.count), np.bool_)
    columns = np.array([grid.x.write_range(column) for column in range(grid.x.count)])
    rows = np.array([grid.y.write_range(row) for row in range(grid.y.count)])
    left, top, right, bottom = roi.m_box
    # rows between two edges of write regions belong to the same tiles
    edges = np.unique(np.clip(rows, top, max(top, bottom)))
    for x0, x1 in _cut_columns(roi, left, right):
        begins, ends = np.clip(columns.T, x0, x1) - x0
        for y0, y1 in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            check_cancel(cancel, f"the {WHAT} was read")
            before = np.concatenate([[0], np.cumsum(_find_columns(roi, y0, y1, x0, x1))])
            runs[(rows[:, 0] <= y0) & (rows[:, 1] >= y1)] |= before[ends] > before[begins]
    if not runs.any():
        width, height = grid.m_size
        raise RoiError(
            f"{WHAT}: {roi.path}: no pixel of the slide lies inside, which is {width}x{height} px for this "
            "model; expected level-0 pixels, or a mask, of this very slide"
        )
    return runs


def _cut_columns(roi: Roi, left: int, right: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of columns whose rows of tiles take little, or what decoding takes anyway."""
    most = max(SCAN_BYTES, roi.footprint.reading_bytes) // (SCAN_ROWS + roi.footprint.column_bytes)
    for begin in range(left, right, most):
        yield begin, min(right, begin + most)


def _find_columns(roi: Roi, y0: int, y1: int, x0: int, x1: int) -> Mask:
    """Return which columns hold a pixel inside between two rows, `(x1 - x0,)`."""
    parts = [roi.read(top, min(SCAN_ROWS, y1 - top), x0, x1).any(axis=0) for top in range(y0, y1, SCAN_ROWS)]
    found: Mask = np.logical_or.reduce(parts)
    return found


def _open_regions(path: Path, scale: Scale) -> Roi:
    regions = load_regions(path)
    values = [int(not region.erases) for region in regions]
    outlines = Outlines(regions, values, l0_per_m=scale.l0_per_m, m_size=scale.m_size)

    def read(m_y: int, count: int, m_x0: int, m_x1: int) -> Mask:
        return outlines.read(m_y, count, m_x0, m_x1).view(np.bool_)

    return Roi(path, outlines.m_box, read, footprint=outlines.footprint)


def _open_mask(path: Path, scale: Scale, l0_size: Size) -> Roi:
    rows = open_mask(path, WHAT)
    try:
        fit = fit_mask(path, rows.size, scale, l0_size, WHAT)
    except TruthError:
        rows.close()
        raise
    taken = rows.footprint
    taken = replace(taken, reading_bytes=taken.reading_bytes + SLICE_PX * BYTES_PER_SLICE_PX)
    return Roi(path, (0, 0, *scale.m_size), partial(_read_inside, rows, fit), rows.close, taken)


def _read_inside(rows: MaskRows, fit: MaskFit, m_y: int, count: int, m_x0: int, m_x1: int) -> Mask:
    inside = np.empty((count, m_x1 - m_x0), np.bool_)
    for top, end in cut_rows(count, m_x1 - m_x0):
        values = fit.read(rows, m_y + top, end - top, m_x0, m_x1)
        grey = values if values.ndim == 2 else values.max(axis=-1)
        inside[top:end] = grey >= 128 if rows.lossy else grey != 0  # compression blurs black
    return inside
