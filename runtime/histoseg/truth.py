"""What is true of a slide: masks and annotations, read as class indices at the model's um/px.

Masks hold class indices, 0 and 255, or the colours of the model's classes (`histoseg.meaning`), at any
whole-number scale to the slide (`histoseg.masks`). Annotations are QuPath GeoJSON or ImageScope XML in
level-0 pixels (`histoseg.annotations`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from histoseg.annotations import Region, is_annotation_file, load_regions
from histoseg.errors import AnnotationError, TruthError
from histoseg.maskrows import Footprint, read_safely
from histoseg.masks import BYTES_PER_SLICE_PX, SLICE_PX, cut_rows, fit_mask, open_mask
from histoseg.meaning import NO_CLASS, choose_meaning
from histoseg.outlines import Outlines

if TYPE_CHECKING:
    from histoseg.arrays import Labels
    from histoseg.card import ModelCard
    from histoseg.maskrows import Size, Values
    from histoseg.scale import Scale

__all__ = ["NO_CLASS", "Truth", "TruthMask", "TruthRegions", "open_truth"]


class Truth(Protocol):
    """Class indices of a slide, row by row. A context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def footprint(self) -> Footprint:
        """What it and its reading take of memory, beside the classes that are returned."""
        ...

    def read(self, m_y: int, count: int, m_x0: int = 0, m_x1: int | None = None) -> Labels:
        """Return the classes of `count` model rows from `m_y` on, `(count, width)` uint8.

        Args:
            m_y: First row.
            count: Number of rows.
            m_x0: First column.
            m_x1: End of the columns; that of the slide when `None`.
        """
        ...


def open_truth(path: Path, card: ModelCard, scale: Scale, l0_size: Size) -> Truth:
    """Open a mask or an annotation file.

    Args:
        path: PNG, JPEG, TIFF, GeoJSON or ImageScope XML.
        card: Whose classes the truth must name.
        scale: How the model's pixels lie on the slide.
        l0_size: Width and height of the slide at level 0.

    Raises:
        TruthError: The mask is missing, unreadable, or does not fit the slide.
        AnnotationError: The annotations cannot be read, or name a class that the model does not have.
    """
    if is_annotation_file(path):
        return TruthRegions(path, card, scale)
    return TruthMask(path, card, scale, l0_size)


class TruthRegions:
    """Annotations seen at the model's um/px; later areas lie over earlier ones.

    An area belongs to the class of its name, whatever the case; one without a name to the class of a
    two-class model that is not background. `Ignore*` and the like are left out, as QuPath does, and so are
    the cores of tissue arrays. A pixel is inside when its centre is.
    """

    def __init__(self, path: Path, card: ModelCard, scale: Scale) -> None:
        """Read an annotation file; see `open_truth`."""
        self._background = card.background_index
        regions = [region for region in load_regions(path) if not region.frames]
        found = {key: _find_class(path, *key, card) for key in {_name_class(region) for region in regions}}
        areas = [(region, value) for region in regions if (value := found[_name_class(region)]) is not None]
        outlines = _lay_out(areas, scale)
        if outlines is None or not outlines.reach_mask():
            raise TruthError(
                f"{path}: no area lies on the slide, {scale.m_size[0]}x{scale.m_size[1]} px for this model; "
                "expected level-0 pixels of this very slide"
            )
        self._outlines = outlines

    def __enter__(self) -> Self:
        """Return the truth itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: the file is read whole."""

    @property
    def footprint(self) -> Footprint:
        """What the areas take, and finding which pixels lie inside."""
        return self._outlines.footprint

    def read(self, m_y: int, count: int, m_x0: int = 0, m_x1: int | None = None) -> Labels:
        """Return the classes of some model rows and columns; see `Truth`."""
        return self._outlines.read(m_y, count, m_x0, m_x1, background=self._background)


def _lay_out(areas: list[tuple[Region, int]], scale: Scale) -> Outlines | None:
    if not areas:
        return None
    regions, values = zip(*areas, strict=True)
    return Outlines(regions, values, l0_per_m=scale.l0_per_m, m_size=scale.m_size)


def _name_class(region: Region) -> tuple[str | None, bool]:
    return region.class_name, region.erases


def _find_class(path: Path, name: str | None, erases: bool, card: ModelCard) -> int | None:
    """Return the class that regions of a name stand for; `None` for those that QuPath ignores (`Ignore*`)."""
    if erases:
        return card.background_index
    if name is None and len(card.class_names) == 2:
        return 1 - card.background_index
    if name is not None and name.endswith("*"):
        return None
    known = {known.casefold(): index for index, known in enumerate(card.class_names)}
    if name is None or name.casefold() not in known:
        raise AnnotationError(
            f"{path}: holds an area of "
            + ("no class" if name is None else f"the class '{name}'")
            + f", expected one of {', '.join(card.class_names)}"
        )
    return known[name.casefold()]


class TruthMask:
    """A truth mask seen at the model's um/px; `histoseg.meaning` says what its values mean."""

    def __init__(self, path: Path, card: ModelCard, scale: Scale, l0_size: Size) -> None:
        """Open a mask of a whole slide; see `open_truth`.

        Raises:
            TruthError: The file is missing, unreadable, or of a size that is no whole scale of the slide.
        """
        self._path = path
        self._rows = open_mask(path)
        try:
            self._fit = fit_mask(path, self._rows.size, scale, l0_size)
            self._meaning = choose_meaning(path, self._rows, card.class_names, card.class_colors)
        except BaseException:
            self._rows.close()
            raise

    def __enter__(self) -> Self:
        """Return the mask itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._rows.close()

    @property
    def footprint(self) -> Footprint:
        """What the file takes, and a slice of rows until its values are classes."""
        rows = self._rows.footprint
        return replace(rows, reading_bytes=rows.reading_bytes + SLICE_PX * BYTES_PER_SLICE_PX)

    def read(self, m_y: int, count: int, m_x0: int = 0, m_x1: int | None = None) -> Labels:
        """Return the classes of some model rows and columns; see `Truth`.

        Raises:
            TruthError: A value is no class of the model, or the file is damaged here.
        """
        m_x1 = len(self._fit.columns) if m_x1 is None else m_x1
        labels = np.empty((count, m_x1 - m_x0), np.uint8)
        for top, end in cut_rows(count, m_x1 - m_x0):
            read = partial(self._fit.read, self._rows, m_y + top, end - top, m_x0, m_x1)
            values = read_safely(self._path, "truth", read)
            labels[top:end] = self._meaning.read(values)
            self._check(labels[top:end], values, m_x0, m_y + top)
        return labels

    def _check(self, labels: Labels, values: Values, m_x: int, m_y: int) -> None:
        """Refuse values that are no class."""
        if labels.max(initial=0) == NO_CLASS:
            y, x = np.argwhere(labels == NO_CLASS)[0]
            raise TruthError(
                f"{self._path}: the truth holds {self._meaning.describe(values[y, x])} at model pixel "
                f"({m_x + x}, {m_y + y}), expected {self._meaning.expected}"
            )
