"""Class indices from the masks of a training set: class colours, palettes, indices, 0 and 255, JPEG.

Colours and palettes are read as the runtime reads a truth (`histoseg.meaning`), so that the mask a model is
trained with can also score it. What a picture saved in colour without any means, its whole source decides: a
white one is foreground among black and white ones, and background among those whose background is white.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoseg.errors import DataError, TruthError
from histoseg.maskrows import read_safely
from histoseg.masks import open_mask
from histoseg.meaning import COLOR_NOISE, NO_CLASS, Meaning, choose_meaning
from histoseg_train.dataset import Item, MaskRule

if TYPE_CHECKING:
    from histoseg.arrays import Labels
    from histoseg.maskrows import MaskRows, Values

# JPEG smears the outlines of a black-and-white mask: in DSB 2018 and OCDC less than 1 % of the pixels of any
# mask lie between these greys. A picture of many was not black and white.
MIDDLE, MOST_BETWEEN = (64, 192), 0.1
CUT = 128
# Larger values are grey levels rather than classes that nobody named.
MOST_CLASSES = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Picture:
    """A mask as it is stored."""

    path: Path
    values: Values
    """`(h, w)` integers or `(h, w, 3)` colours."""
    lossy: bool
    meaning: Meaning | None
    """What colours or a palette mean; `None` for grey pictures, and where no class colours are known."""

    @property
    def has_color(self) -> bool:
        """Whether any pixel is more than a grey."""
        noise = COLOR_NOISE if self.lossy else 0
        return self.values.ndim == 3 and bool((np.ptp(self.values, axis=2) > noise).any())

    @property
    def greys(self) -> Values:
        """`(h, w)`: the values, or the brightest channel of colours."""
        return self.values if self.values.ndim == 2 else self.values.max(axis=2)


class MaskReader:
    """Reads masks, and remembers what those of each source turned out to be."""

    def __init__(self, items: Iterable[Item], *, classes: int, colors: Sequence[str] = ()) -> None:
        """Read for `classes` classes.

        Args:
            items: The training set: one mask may tell what another means.
            classes: Number of classes.
            colors: `#rrggbb` of each class; without them, masks in colour are refused.
        """
        assert len(colors) in (0, classes)
        self._masks = [(item.source, item.mask) for item in items if item.mask is not None]
        self.classes = classes
        self._colors = tuple(colors)
        self._is_in_color: dict[str, bool] = {}
        self._noted: set[str] = set()

    def read(self, item: Item) -> Labels:
        """Return the class indices of an item's mask, `(h, w)` uint8.

        Raises:
            DataError: The mask cannot be read, or a value of it is no class.
        """
        mask = item.mask
        assert mask is not None, "the item has no mask"
        try:
            labels = self._read(item, mask)
        except TruthError as error:
            raise DataError(str(error)) from error
        if labels.max(initial=0) >= self.classes:
            raise DataError(
                f"{mask}: holds pixels of class {labels.max()}, expected 0 to {self.classes - 1} "
                f"for {self.classes} classes"
            )
        return labels

    def _read(self, item: Item, mask: Path) -> Labels:
        rule = item.rule
        by_value = rule.threshold is not None or bool(rule.values)
        picture = _load(mask, () if by_value else self._colors)
        if rule.threshold is not None:
            return (picture.greys > rule.threshold).astype(np.uint8)
        if picture.has_color and picture.meaning is None:
            raise DataError(f"{mask}: a colour mask, expected one channel of class indices; convert it")
        if rule.values:
            return _map_values(picture, rule, self.classes)
        self._note_smears(item.source, picture)
        if picture.meaning is not None and not self._is_grey(item.source, picture):
            return _require_classes(picture, picture.meaning)
        return _read_indices(picture, self.classes)

    def _is_grey(self, source: str, picture: _Picture) -> bool:
        """Tell whether a picture saved in colour is one of greys, where it could be both."""
        if picture.values.ndim == 2 or picture.has_color:
            return False
        by_index = _try_indices(picture, self.classes)
        if by_index is None:
            return False
        if _is_meant(picture, by_index):
            return True
        if source not in self._is_in_color:
            self._is_in_color[source] = self._find_color(source)
        return not self._is_in_color[source]

    def _find_color(self, source: str) -> bool:
        """Tell whether a source's masks are in colour, by the first one that can only be one of both."""
        for path in (mask for name, mask in self._masks if name == source):
            picture = _load(path, self._colors)
            by_index = _try_indices(picture, self.classes)
            if picture.has_color or by_index is None:
                return True
            if picture.meaning is None or _is_meant(picture, by_index):
                return False
        return True  # all greys are class colours

    def _note_smears(self, source: str, picture: _Picture) -> None:
        if not picture.lossy or source in self._noted or np.isin(picture.values, (0, 255)).all():
            return
        self._noted.add(source)
        what = "each pixel takes the nearest class colour" if picture.has_color else f"cut at {CUT}"
        _log.warning(
            "%s: masks are lossy (%s and others), their values smeared: %s; PNG would keep them exact",
            source, picture.path.name, what,
        )  # fmt: skip


def _try_indices(picture: _Picture, classes: int) -> Labels | None:
    """Return what the greys mean as class indices, `None` where some mean nothing."""
    if picture.lossy and classes > 2:
        return None
    labels = _index_table(classes, lossy=picture.lossy)[np.clip(picture.greys, -1, 256).astype(np.int16)]
    return None if labels.max(initial=0) == NO_CLASS else labels


def _is_meant(picture: _Picture, labels: Labels) -> bool:
    return picture.meaning is not None and np.array_equal(labels, picture.meaning.read(picture.values))


def _load(path: Path, colors: tuple[str, ...]) -> _Picture:
    rows = open_mask(path, "mask")
    try:
        meaning = _choose_meaning(path, rows, colors) if colors else None
        width, height = rows.size
        values = read_safely(path, "mask", partial(rows.read, np.arange(height), np.arange(width)))
        return _Picture(path, values, rows.lossy, meaning)
    finally:
        rows.close()


def _choose_meaning(path: Path, rows: MaskRows, colors: tuple[str, ...]) -> Meaning | None:
    if rows.channels == 1 and rows.palette is None:
        return None
    return choose_meaning(path, rows, tuple(f"class {index}" for index in range(len(colors))), colors)


def _require_classes(picture: _Picture, meaning: Meaning) -> Labels:
    labels = meaning.read(picture.values)
    if labels.max(initial=0) == NO_CLASS:
        y, x = np.argwhere(labels == NO_CLASS)[0]
        raise DataError(
            f"{picture.path}: holds {meaning.describe(picture.values[y, x])} at pixel ({x}, {y}), "
            f"expected {meaning.expected}; see --classes and --mask-threshold"
        )
    return labels


def _read_indices(picture: _Picture, classes: int) -> Labels:
    if picture.lossy:
        _check_lossy(picture, classes)
    labels = _try_indices(picture, classes)
    if labels is None:
        raise _refuse_values(picture, [*range(classes), *([255] if classes == 2 else [])], classes)
    return labels


def _check_lossy(picture: _Picture, classes: int) -> None:
    between = float(((picture.greys >= MIDDLE[0]) & (picture.greys < MIDDLE[1])).mean())
    if classes > 2 or between > MOST_BETWEEN:
        found = (
            "a lossy picture"
            if classes > 2
            else f"a lossy picture, {between:.0%} of it neither black nor white"
        )
        wanted = f"indices of {classes} classes, which that blurs" if classes > 2 else "0 and 255"
        raise DataError(
            f"{picture.path}: {found}, expected {wanted}; write it as PNG, or give a threshold "
            "(--mask-threshold 127)"
        )


def _index_table(classes: int, *, lossy: bool) -> Labels:
    """Return the class of each value from 0 to 255, and of all that are beyond."""
    table = np.full(257, NO_CLASS, np.uint8)
    if lossy:
        table[:CUT], table[CUT:256] = 0, 1
        return table
    table[:classes] = np.arange(classes)
    if classes == 2:
        table[255] = 1
    return table


def _map_values(picture: _Picture, rule: MaskRule, classes: int) -> Labels:
    pairs = dict(rule.values)
    if max(pairs.values()) >= classes or not np.isin(picture.greys, list(pairs)).all():
        raise _refuse_values(picture, sorted(pairs), classes)
    labels = np.zeros(picture.greys.shape, np.uint8)
    for value, index in pairs.items():
        labels[picture.greys == value] = index
    return labels


def _refuse_values(picture: _Picture, expected: list[int], classes: int) -> DataError:
    present = np.unique(picture.greys).tolist()
    hint = ""
    if classes <= max(present) < MOST_CLASSES:
        hint = "; name more classes with --classes"
    elif len(set(present) - set(expected)) > 1:
        hint = "; masks of grey levels need a threshold (--mask-threshold 127)"
    return DataError(
        f"{picture.path}: holds the values {_shorten(present)}, expected {_shorten(expected)} "
        f"for {classes} classes{hint}"
    )


def _shorten(values: list[int]) -> str:
    return ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
