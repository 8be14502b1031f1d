"""What a slide is: the protocol that the runtime reads through, and an array in memory as one.

Files live in `slidefile`, the model's um/px in `scale`. All reading gives uint8 RGB.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from histoseg.errors import SlideError
from histoseg.overview import read_overview
from histoseg.resample import reflect_indices
from histoseg.scale import Scale, ScaledSlide, plan_scale
from histoseg.slidefile import FileSlide

if TYPE_CHECKING:
    from histoseg.arrays import Pixels
    from histoseg.card import ColorSpace

__all__ = [
    "ArraySlide",
    "FileSlide",
    "Scale",
    "ScaledSlide",
    "Slide",
    "open_slide",
    "plan_scale",
    "read_overview",
    "reflect_indices",
]


class Slide(Protocol):
    """What the runtime asks of a slide. Reading must be safe from several threads."""

    name: str
    level_sizes: tuple[tuple[int, int], ...]
    """Width and height of each level, finest first."""
    spacing_um_px: tuple[float, float] | None
    """Level-0 um/px along x and y; `None` where the file does not say."""

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return `(height, width, 3)` RGB of a region inside the level, in that level's pixels."""
        ...


class ArraySlide:
    """An RGB array in memory as a slide of one level."""

    def __init__(
        self, rgb: Pixels, spacing_um_px: float | tuple[float, float] | None, name: str = "array"
    ) -> None:
        """Wrap `rgb`, `(height, width, 3)` uint8, without copying it.

        Raises:
            SlideError: The array has another shape or dtype.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise SlideError(f"array is {rgb.dtype} {rgb.shape}, expected uint8 (height, width, 3)")
        self.name = name
        self.level_sizes: tuple[tuple[int, int], ...] = ((rgb.shape[1], rgb.shape[0]),)
        self.spacing_um_px = _pair(spacing_um_px)
        self._rgb = rgb

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return a view of the region."""
        assert level == 0
        return self._rgb[y : y + height, x : x + width]


def _pair(spacing: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if spacing is None:
        return None
    x, y = spacing if isinstance(spacing, tuple) else (spacing, spacing)
    return float(x), float(y)


def open_slide(path: str | Path, *, color_space: ColorSpace = "device") -> FileSlide:
    """Open a slide file in any format that OpenSlide reads.

    Args:
        path: The file.
        color_space: `device` reads pixels as they are stored; `sRGB` converts them by the slide's ICC profile
            (a slide without one counts as sRGB already). See `InputSpec.color_space`.

    Raises:
        SlideError: The file is missing, no format that OpenSlide reads, or its profile cannot be used.
    """
    return FileSlide(Path(path), color_space=color_space)
