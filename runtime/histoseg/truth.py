"""What is true of a slide: masks and annotations, read as class indices at the model's um/px.

Masks hold class indices, 0 and 255, or the colours of the model's classes, at any whole-number scale to the
slide; see `histoseg.masks`. Annotations are QuPath GeoJSON or ImageScope XML in level-0 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from histoseg.annotations import Region, fill_region, is_annotation_file, load_regions
from histoseg.colors import parse_color
from histoseg.errors import AnnotationError, TruthError
from histoseg.masks import SCAN_ROWS, MaskRows, fit_mask, open_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels, Pixels
    from histoseg.card import ModelCard
    from histoseg.masks import Values
    from histoseg.scale import Scale

    Size = tuple[int, int]

NO_CLASS = 255
# By how much the channels of a grey pixel may differ in a JPEG.
COLOR_NOISE = 24


class Truth(Protocol):
    """Class indices of a slide, row by row. A context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def read(self, m_y: int, count: int) -> Labels:
        """Return the classes of `count` model rows from `m_y` on, `(count, width)` uint8."""
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
    return TruthMask(path, scale.m_size, len(card.class_names), l0_size, card.class_colors)


class TruthRegions:
    """Annotations seen at the model's um/px; later areas lie over earlier ones."""

    def __init__(self, path: Path, card: ModelCard, scale: Scale) -> None:
        """Read an annotation file; see `open_truth`."""
        regions = load_regions(path)
        self._width = scale.m_size[0]
        self._background = card.background_index
        self._scale = scale.l0_per_m
        self._areas = [
            (region, value) for region in regions if (value := _find_class(path, region, card)) is not None
        ]
        if not any(_touches(region, scale) for region, _ in self._areas):
            raise TruthError(
                f"{path}: no area lies on the slide, {scale.m_size[0]}x{scale.m_size[1]} px for this model; "
                "expected level-0 pixels of this very slide"
            )
        self._spans = np.array([_span_rows(region, scale.l0_per_m[1]) for region, _ in self._areas])

    def __enter__(self) -> Self:
        """Return the truth itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: the file is read whole."""

    def read(self, m_y: int, count: int) -> Labels:
        """Return the classes of `count` model rows from `m_y` on, `(count, width)` uint8."""
        rows = np.full((count, self._width), self._background, np.uint8)
        touching = (self._spans[:, 0] < m_y + count) & (self._spans[:, 1] > m_y)
        for index in np.flatnonzero(touching):
            region, value = self._areas[index]
            fill_region(rows, region, value, scale=self._scale, m_y=m_y)
        return rows


def _find_class(path: Path, region: Region, card: ModelCard) -> int | None:
    """Return the class that a region stands for; `None` for those that QuPath ignores (`Ignore*`)."""
    name = region.class_name
    if region.erases:
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


def _touches(region: Region, scale: Scale) -> bool:
    points = np.concatenate(region.rings) / scale.l0_per_m
    return bool((points.max(axis=0) > 0).all() and (points.min(axis=0) < scale.m_size).all())


def _span_rows(region: Region, l0_per_m: float) -> tuple[float, float]:
    rows = np.concatenate([ring[:, 1] for ring in region.rings]) / l0_per_m
    return float(rows.min()), float(rows.max())


class TruthMask:
    """A truth mask seen at the model's um/px.

    What its values mean is decided for the whole file. Palette pictures are read by index if every index is a
    class, else by colour. Pictures in colour are read by class colour; those saved in colour but without any
    are read as indices or 0/255, unless all of their greys are class colours.
    """

    def __init__(
        self,
        path: Path,
        m_size: Size,
        classes: int,
        l0_size: Size | None = None,
        class_colors: tuple[str, ...] = (),
    ) -> None:
        """Open a mask of a whole slide.

        Args:
            path: PNG, JPEG or TIFF. Two classes may also be 0 and 255; JPEG always is, or class colours.
            m_size: Width and height of the slide in model pixels.
            classes: Classes of the model.
            l0_size: Width and height of the slide at level 0.
            class_colors: `#rrggbb` of each class, for masks in colour.

        Raises:
            TruthError: The file is missing, unreadable, or of a size that is no whole scale of the slide.
        """
        self._path = path
        self._rows = open_mask(path)
        try:
            self._fit = fit_mask(path, self._rows.size, m_size, l0_size)
            self._meaning = _choose_meaning(path, self._rows, classes, class_colors)
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

    def read(self, m_y: int, count: int) -> Labels:
        """Return the classes of `count` model rows from `m_y` on, `(count, width)` uint8.

        Raises:
            TruthError: A value is no class of the model, or the file is damaged here.
        """
        values = _read_safely(self._path, lambda: self._fit.read(self._rows, m_y, count))
        labels = self._meaning.read(values)
        wrong = labels == NO_CLASS
        if wrong.any():
            y, x = np.argwhere(wrong)[0]
            raise TruthError(
                f"{self._path}: the truth holds {self._meaning.describe(values[y, x])} at model pixel "
                f"({x}, {m_y + y}), expected {self._meaning.expected}"
            )
        return labels


def _read_safely(path: Path, read: Callable[[], Values]) -> Values:
    try:
        return read()
    except Exception as error:  # each codec has errors of its own
        raise TruthError(f"{path}: the truth is damaged ({error}); write it again") from error


class _Meaning(Protocol):
    """What the values of a mask mean."""

    expected: str

    def read(self, values: Values) -> Labels:
        """Return classes, `NO_CLASS` where a value is none."""
        ...

    def describe(self, value: Values) -> str:
        """Return one pixel's value in words."""
        ...


class _Indices:
    """Class indices; for two classes also 0 and 255, cut in the middle where the picture is lossy."""

    def __init__(self, classes: int, *, lossy: bool) -> None:
        self.expected = f"class indices 0 to {classes - 1}" + (", or 0 and 255" if classes == 2 else "")
        self._table = np.full(256, NO_CLASS, np.uint8)
        if lossy and classes == 2:
            self._table[:128], self._table[128:] = 0, 1  # compression blurs 0 and 255
            return
        self._table[:classes] = np.arange(classes)
        if classes == 2:
            self._table[255] = 1

    def read(self, values: Values) -> Labels:
        if values.ndim == 3:
            grey = values[..., 0]
            mixed = (values != grey[..., None]).any(axis=-1)
            return np.where(mixed, np.uint8(NO_CLASS), self._table[grey])
        return self._table[values]

    def describe(self, value: Values) -> str:
        return f"the value {value}" if value.ndim == 0 else f"the value {value[0]}"


class _Colors:
    """Class colours; in lossy pictures the nearest one."""

    def __init__(self, colors: Pixels, *, lossy: bool, palette: Pixels | None = None) -> None:
        self.expected = f"the colours of the model's classes, {', '.join(map(_write_color, colors))}"
        self._colors, self._lossy, self._palette = colors, lossy, palette

    def read(self, values: Values) -> Labels:
        rgb = values if self._palette is None else self._palette[values]
        labels = np.full(rgb.shape[:2], NO_CLASS, np.uint8)
        if not self._lossy:
            codes = _pack(rgb)
            for index, code in enumerate(_pack(self._colors)):
                labels[codes == code] = index
            return labels
        nearest = np.full(labels.shape, np.iinfo(np.int32).max, np.int32)
        for index, color in enumerate(self._colors.astype(np.int32)):
            distance = ((rgb - color) ** 2).sum(axis=-1, dtype=np.int32)
            closer = distance < nearest
            labels[closer], nearest[closer] = index, distance[closer]
        return labels

    def describe(self, value: Values) -> str:
        return f"the colour {_write_color(value if self._palette is None else self._palette[value])}"


def _choose_meaning(path: Path, rows: MaskRows, classes: int, class_colors: tuple[str, ...]) -> _Meaning:
    colors = np.array([parse_color(color) for color in class_colors], np.uint8).reshape(-1, 3)
    indices = _Indices(classes, lossy=rows.lossy)
    if rows.channels == 1:
        if rows.palette is None or not len(colors):
            return indices
        used = _find_used(path, rows)
        by_color = _Colors(colors, lossy=False, palette=rows.palette)
        if (indices.read(used) == NO_CLASS).any() and not (by_color.read(used) == NO_CLASS).any():
            return by_color
        return indices
    if not len(colors):
        return indices
    by_color = _Colors(colors, lossy=rows.lossy)
    return indices if _is_grey(path, rows, None if rows.lossy else by_color) else by_color


def _find_used(path: Path, rows: MaskRows) -> Values:
    """Return the values that occur in a mask, `(1, count)`."""
    used = np.zeros(256, np.bool_)
    for values in _scan(path, rows):
        used[np.unique(values)] = True
    return np.flatnonzero(used).astype(np.uint8)[None]


def _is_grey(path: Path, rows: MaskRows, by_color: _Colors | None) -> bool:
    """Tell whether a picture saved in colour has none, and greys that are no class colours."""
    strange = by_color is None
    for values in _scan(path, rows):
        low, high = values.min(axis=-1), values.max(axis=-1)
        if ((high - low) > (COLOR_NOISE if rows.lossy else 0)).any():
            return False
        strange = strange or (by_color is not None and bool((by_color.read(values) == NO_CLASS).any()))
    return strange


def _scan(path: Path, rows: MaskRows) -> Iterator[Values]:
    height = rows.size[1]
    for top in range(0, height, SCAN_ROWS):
        bottom = min(height, top + SCAN_ROWS)
        yield _read_safely(path, partial(rows.read, top, bottom))


def _pack(rgb: Pixels) -> NDArray[np.uint32]:
    wide = rgb.astype(np.uint32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], np.uint32)


def _write_color(rgb: Pixels) -> str:
    red, green, blue = rgb
    return f"#{red:02x}{green:02x}{blue:02x}"
