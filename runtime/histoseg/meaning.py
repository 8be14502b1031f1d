"""What the values of a truth mask mean: class indices, 0 and 255, or the colours of the model's classes.

It is decided once, for the whole file:

- Palette pictures are read by index if every index is a class, else by colour if every colour is one's.
- Pictures in colour are read by class colour: exactly, or the nearest where compression is lossy.
- Pictures in colour that hold only greys are grey pictures, unless all of these greys are class colours.
- Grey pictures hold class indices; with two classes also 0 and 255, cut in the middle where compression is
  lossy. Lossy pictures of more classes are refused: their indices are blurred into each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from histoseg.colors import parse_color
from histoseg.errors import TruthError
from histoseg.maskrows import MaskRows, read_safely

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels, Pixels
    from histoseg.maskrows import Values

NO_CLASS = 255
# By how much the channels of a grey pixel may differ in a lossy picture.
COLOR_NOISE = 24
# Rows that are looked at together when a whole mask is scanned.
SCAN_ROWS = 256
# So many classes are spelt out in a message.
NAMED_CLASSES = 12


class Meaning(Protocol):
    """What the values of a mask mean."""

    expected: str

    def read(self, values: Values) -> Labels:
        """Return classes, `NO_CLASS` where a value is none."""
        ...

    def describe(self, value: Values) -> str:
        """Return one pixel's value in words."""
        ...


def choose_meaning(
    path: Path, rows: MaskRows, class_names: tuple[str, ...], class_colors: tuple[str, ...]
) -> Meaning:
    """Decide what a mask's values mean; reads the whole mask where it has a palette or greys in colour.

    Args:
        path: For messages.
        rows: The mask.
        class_names: Name of each class.
        class_colors: `#rrggbb` of each class.

    Raises:
        TruthError: The file is damaged, or nothing can be meant.
    """
    colors = np.array([parse_color(color) for color in class_colors], np.uint8)
    by_color = _Colors(colors, class_names, lossy=rows.lossy, palette=rows.palette)
    if _is_read_by_color(path, rows, by_color, _Indices(len(class_names), lossy=False)):
        _check_colors(path, class_names, class_colors)
        return by_color
    if rows.lossy and len(class_names) > 2:
        raise TruthError(
            f"{path}: the truth is a grey picture whose compression is lossy, expected class indices of "
            f"{len(class_names)} classes, which that blurs; write it as PNG or TIFF without loss"
        )
    return _Indices(len(class_names), lossy=rows.lossy)


def _is_read_by_color(path: Path, rows: MaskRows, by_color: _Colors, by_index: _Indices) -> bool:
    if rows.channels == 1:
        if rows.palette is None:
            return False
        used = _find_used(path, rows)
        return bool((by_index.read(used) == NO_CLASS).any() and not (by_color.read(used) == NO_CLASS).any())
    return not _is_grey(path, rows, by_color)


def _check_colors(path: Path, names: tuple[str, ...], colors: tuple[str, ...]) -> None:
    first: dict[str, str] = {}
    for name, color in zip(names, colors, strict=True):
        if (other := first.setdefault(color.lower(), name)) != name:
            raise TruthError(
                f"{path}: the truth is in colour, and the classes '{other}' and '{name}' of the model are "
                f"both {color}, expected colours that differ; write class indices"
            )


def _find_used(path: Path, rows: MaskRows) -> Values:
    """Return the values that occur in a mask of palette indices, `(1, count)`."""
    used = np.zeros(256, np.bool_)
    for values in _scan(path, rows):
        used[np.unique(values)] = True
    return np.flatnonzero(used).astype(np.uint8)[None]


def _is_grey(path: Path, rows: MaskRows, by_color: _Colors) -> bool:
    """Tell whether a picture saved in colour has none, and greys that are no class colours."""
    strange = False
    for values in _scan(path, rows):
        low, high = values.min(axis=-1), values.max(axis=-1)
        if ((high - low) > (COLOR_NOISE if rows.lossy else 0)).any():
            return False
        strange = strange or by_color.leave_out(values)
    return strange


def _scan(path: Path, rows: MaskRows) -> Iterator[Values]:
    width, height = rows.size
    columns = np.arange(width)
    for top in range(0, height, SCAN_ROWS):
        lines = np.arange(top, min(height, top + SCAN_ROWS))
        yield read_safely(path, "truth", partial(rows.read, lines, columns))


class _Indices:
    """Class indices; for two classes also 0 and 255."""

    def __init__(self, classes: int, *, lossy: bool) -> None:
        self.expected = f"class indices 0 to {classes - 1}" + (", or 0 and 255" if classes == 2 else "")
        # one more, for values beyond a byte
        self._table = np.full(257, NO_CLASS, np.uint8)
        self._table[:classes] = np.arange(classes)
        if classes == 2:
            self._table[255] = 1
        if lossy:
            self._table[:128], self._table[128:256] = 0, 1

    def read(self, values: Values) -> Labels:
        grey = values if values.ndim == 2 else values[..., 0]
        return self._table[grey if grey.dtype == np.uint8 else np.clip(grey, -1, 256)]

    def describe(self, value: Values) -> str:
        return f"the value {value if np.ndim(value) == 0 else value[0]}"


class _Colors:
    """Class colours; in lossy pictures the nearest one."""

    def __init__(
        self, colors: Pixels, names: tuple[str, ...], *, lossy: bool, palette: Pixels | None = None
    ) -> None:
        listed = [f"{_write_color(color)} ({name})" for color, name in zip(colors, names, strict=True)]
        more = [f"and {len(listed) - NAMED_CLASSES} more"] if len(listed) > NAMED_CLASSES else []
        self.expected = f"the colours of the model's classes, {', '.join(listed[:NAMED_CLASSES] + more)}"
        self._colors, self._lossy, self._palette = colors, lossy, palette

    def leave_out(self, greys: Pixels) -> bool:
        """Tell whether some greys, `(rows, width, 3)`, are no class's, or far from it in a lossy picture."""
        if not self._lossy:
            return bool((self._match(greys) == NO_CLASS).any())
        if (np.ptp(self._colors, axis=1) <= COLOR_NOISE).all():
            return False  # all classes are grey, and so is what lies between them
        nearest = self._colors[self._find_nearest(greys)].astype(np.int16)
        return bool((np.abs(greys - nearest) > COLOR_NOISE).any())

    def read(self, values: Values) -> Labels:
        if self._palette is not None:
            by_index = self._match(self._palette[None])[0]
            return np.asarray(by_index[values], np.uint8)
        return self._find_nearest(values) if self._lossy else self._match(values)

    def _match(self, rgb: Pixels) -> Labels:
        labels = np.full(rgb.shape[:2], NO_CLASS, np.uint8)
        codes = _pack(rgb)
        for index, code in enumerate(_pack(self._colors[None])[0]):
            np.copyto(labels, np.uint8(index), where=codes == code)
        return labels

    def _find_nearest(self, rgb: Pixels) -> Labels:
        import cv2

        # the nearest colour c has the largest 2 c p - c c, a whole number that float32 holds exactly
        labels, wide = np.zeros(rgb.shape[:2], np.uint8), rgb.astype(np.float32)
        best = np.full(labels.shape, -np.inf, np.float32)
        for index, color in enumerate(self._colors.astype(np.float32)):
            near = cv2.transform(wide, np.append(2 * color, -(color @ color))[None])
            np.copyto(labels, np.uint8(index), where=near > best)
            np.maximum(best, near, out=best)
        return labels

    def describe(self, value: Values) -> str:
        return f"the colour {_write_color(value if self._palette is None else self._palette[value])}"


def _pack(rgb: Pixels) -> NDArray[np.uint32]:
    """Return one number for each colour of `(height, width, 3)`."""
    import cv2

    return cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA).view(np.uint32)[..., 0]


def _write_color(rgb: Pixels) -> str:
    red, green, blue = rgb
    return f"#{red:02x}{green:02x}{blue:02x}"
