"""A slide seen at the model's um/px.

Frames: `level_` pixels of one pyramid level, `m_` pixels at the model's um/px. One model pixel is the mean of
the level pixels it covers, on one grid for the whole slide, so that neighbouring reads never disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histoseg.equalize import Equalization, equalize, widen
from histoseg.errors import SpacingError
from histoseg.resample import average_areas, average_blocks, reflect_indices

if TYPE_CHECKING:
    from histoseg.arrays import Pixels
    from histoseg.slide import Slide


@dataclass(frozen=True)
class Scale:
    """How model pixels lie over a pyramid level, along x and y."""

    level: int
    level_per_m: tuple[float, float]
    """Level pixels that one model pixel spans; whole numbers wherever the tolerance allows."""
    l0_per_m: tuple[float, float]
    m_size: tuple[int, int]
    spacing_um_px: tuple[float, float]
    """The um/px really used: the model's own, or within the tolerance of it."""

    @property
    def l0_spacing_um_px(self) -> tuple[float, float]:
        """Level-0 um/px along x and y: the slide's own, or what overrode it."""
        x, y = (um / l0 for um, l0 in zip(self.spacing_um_px, self.l0_per_m, strict=True))
        return x, y


def plan_scale(
    slide: Slide, spacing_um_px: float, *, tolerance: float, mpp: float | None = None, force: bool = False
) -> Scale:
    """Choose the finest sufficient level, and how to resample it to the model's um/px.

    Args:
        slide: Where the level sizes and um/px come from.
        spacing_um_px: The model's um/px.
        tolerance: Fraction by which the um/px may differ before pixels are resampled.
        mpp: Level-0 um/px that overrides the slide's own.
        force: Run a slide that is too coarse for the model, enlarged.

    Raises:
        SpacingError: The slide states no um/px, or is too coarse for the model.
    """
    l0_spacing = (mpp, mpp) if mpp else slide.spacing_um_px
    name = getattr(slide, "path", slide.name)  # of a file the path, which a person knows it by
    if l0_spacing is None:
        raise SpacingError(
            f"{name}: the slide does not state its um/px, which the model needs "
            f"({spacing_um_px:g} um/px); give it with --mpp"
        )
    if not all(0 < value < math.inf for value in l0_spacing):
        raise SpacingError(
            f"{name}: the slide has {l0_spacing[0]:g} x {l0_spacing[1]:g} um/px, expected more than 0; "
            "give it with --mpp"
        )
    l0_per_m = [spacing_um_px / value for value in l0_spacing]
    if min(l0_per_m) < 1 - tolerance and not force:
        raise SpacingError(
            f"{name}: the slide has {max(l0_spacing):.4g} um/px, too coarse for a model of "
            f"{spacing_um_px:g} um/px; use a finer scan, --mpp if the slide's value is wrong, "
            "or --allow-coarse to enlarge it"
        )
    level = _choose_level(slide, l0_per_m, tolerance)
    return _snap_scale(slide, level, l0_per_m, l0_spacing, tolerance)


def _choose_level(slide: Slide, l0_per_m: list[float], tolerance: float) -> int:
    best = 0
    for level, size in enumerate(slide.level_sizes):
        spans = [
            per_m * here / full
            for per_m, here, full in zip(l0_per_m, size, slide.level_sizes[0], strict=True)
        ]
        if min(spans) >= 1 - tolerance:
            best = level
    return best


def _snap_scale(
    slide: Slide, level: int, l0_per_m: list[float], l0_spacing: tuple[float, float], tolerance: float
) -> Scale:
    per_m, l0, sizes = [], [], []
    for axis in (0, 1):
        size, full = slide.level_sizes[level][axis], slide.level_sizes[0][axis]
        span = l0_per_m[axis] * size / full
        whole = max(1, round(span))
        if abs(span / whole - 1) <= tolerance:
            span = float(whole)
        per_m.append(span)
        l0.append(span * full / size)
        # a last model pixel that is only partly covered still counts
        sizes.append(max(1, math.ceil(size / span - 1e-6)))
    spacing = (l0[0] * l0_spacing[0], l0[1] * l0_spacing[1])
    return Scale(level, (per_m[0], per_m[1]), (l0[0], l0[1]), (sizes[0], sizes[1]), spacing)


class ScaledSlide:
    """A slide seen at one um/px: reads model pixels, reflected at the slide's borders."""

    def __init__(self, slide: Slide, scale: Scale, equalization: Equalization | None = None) -> None:
        """See `slide` through `scale`, with its contrast equalised where the model's card says so."""
        self.slide = slide
        self.scale = scale
        self.equalization = equalization

    @property
    def m_size(self) -> tuple[int, int]:
        """Width and height in model pixels."""
        return self.scale.m_size

    def cover(self, m_x: int, m_y: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Return what `read` reads of the level: `(x0, y0, x1, y1)`, inside it."""
        columns = reflect_indices(m_x, width, self.m_size[0])
        rows = reflect_indices(m_y, height, self.m_size[1])
        inside = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
        return self._cover_inside(*self._widen(*inside))

    def must_wait(self, m_x: int, m_y: int, width: int, height: int) -> bool:
        """Return whether a read would wait for pixels that are still to come: never."""
        return False

    def halt(self) -> None:
        """Make reads that wait fail: there are none."""

    def read(self, m_x: int, m_y: int, width: int, height: int) -> Pixels:
        """Return `(height, width, 3)` RGB at the model's um/px.

        The region may reach outside the slide: pixels there mirror those inside (the border pixel itself
        is not repeated), however far outside they lie.

        Raises:
            SlideError: The file is damaged here.
        """
        columns = reflect_indices(m_x, width, self.m_size[0])
        rows = reflect_indices(m_y, height, self.m_size[1])
        left, top = int(columns.min()), int(rows.min())
        inside = self._equalize_inside(left, top, int(columns.max()) + 1, int(rows.max()) + 1)
        if len(columns) == inside.shape[1] and len(rows) == inside.shape[0] and left == m_x and top == m_y:
            return inside
        return np.ascontiguousarray(inside[rows - top][:, columns - left])

    def _equalize_inside(self, m_x0: int, m_y0: int, m_x1: int, m_y1: int) -> Pixels:
        x0, y0, x1, y1 = self._widen(m_x0, m_y0, m_x1, m_y1)
        pixels = self._read_inside(x0, y0, x1, y1)
        if self.equalization is not None:
            pixels = equalize(pixels, self.equalization)
        return pixels[m_y0 - y0 : m_y1 - y0, m_x0 - x0 : m_x1 - x0]

    def _widen(self, m_x0: int, m_y0: int, m_x1: int, m_y1: int) -> tuple[int, int, int, int]:
        """Return the pixels that decide what those inside become."""
        if self.equalization is None:
            return m_x0, m_y0, m_x1, m_y1
        (width, height), cell = self.m_size, self.equalization.cell_px
        (x0, x1), (y0, y1) = widen(m_x0, m_x1, width, cell), widen(m_y0, m_y1, height, cell)
        return x0, y0, x1, y1

    def _read_inside(self, m_x0: int, m_y0: int, m_x1: int, m_y1: int) -> Pixels:
        spans = self.scale.level_per_m
        x0, y0, x1, y1 = self._cover_inside(m_x0, m_y0, m_x1, m_y1)
        pixels = self.slide.read_level(self.scale.level, x0, y0, x1 - x0, y1 - y0)
        m_width, m_height = m_x1 - m_x0, m_y1 - m_y0
        if spans == (1.0, 1.0):
            return pixels
        if spans[0].is_integer() and spans[1].is_integer():
            return average_blocks(pixels, int(spans[0]), int(spans[1]), m_width, m_height)
        return average_areas(pixels, (x0, y0), (m_x0, m_y0), spans, (m_width, m_height))

    def _cover_inside(self, m_x0: int, m_y0: int, m_x1: int, m_y1: int) -> tuple[int, int, int, int]:
        (width, height), spans = self.slide.level_sizes[self.scale.level], self.scale.level_per_m
        (x0, x1), (y0, y1) = _cover(m_x0, m_x1, spans[0], width), _cover(m_y0, m_y1, spans[1], height)
        return x0, y0, x1, y1


def _cover(m0: int, m1: int, span: float, length: int) -> tuple[int, int]:
    return max(0, math.floor(m0 * span + 1e-9)), min(length, math.ceil(m1 * span - 1e-9))
