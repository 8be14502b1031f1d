"""What every kind of mask file gives: its values, by lines and columns."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from histoseg.errors import HistosegError, TruthError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Pixels

    Size = tuple[int, int]
    Indices = NDArray[np.intp]
    Values = NDArray[Any]

Result = TypeVar("Result")

# What is decoded at once, a whole picture or one row of tiles, may take this many bytes.
MAX_DECODED_BYTES = 2 << 30
# What codecs raise on damaged data; imagecodecs derives all of its errors from RuntimeError.
DAMAGE = (
    RuntimeError,
    ValueError,
    OSError,
    EOFError,
    SyntaxError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Footprint:
    """Memory that a mask takes, counted from the sizes of its arrays."""

    loaded_bytes: int = 0
    """From when it is opened until it is closed."""
    reading_bytes: int = 0
    """At most, while rows are read, however many columns."""
    column_bytes: int = 0
    """Between two reads, for every column that is read."""


class MaskRows(Protocol):
    """The values of a mask."""

    @property
    def size(self) -> Size:
        """Width and height."""
        ...

    @property
    def channels(self) -> int:
        """1, or 3 for colours."""
        ...

    @property
    def lossy(self) -> bool:
        """Values may differ a little from those that were drawn."""
        ...

    @property
    def palette(self) -> Pixels | None:
        """`(256, 3)` RGB of each value, where the picture has colours behind its values."""
        ...

    @property
    def footprint(self) -> Footprint:
        """What reading takes."""
        ...

    def read(self, lines: Indices, columns: Indices) -> Values:
        """Return some lines and columns, both ascending.

        Returns:
            `(lines, columns)` integers, or `(lines, columns, 3)` uint8.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def read_safely(path: Path, what: str, read: Callable[[], Result]) -> Result:
    """Return what `read` returns.

    Raises:
        TruthError: The file is damaged where it was read.
    """
    try:
        return read()
    except HistosegError:
        raise
    except DAMAGE as error:
        raise TruthError(f"{path}: the {what} is damaged ({error}); write it again") from error


def fill_palette(colors: Pixels) -> Pixels:
    """Return `(n, 3)` colours as `(256, 3)`, black where there are none."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors[:256]
    return palette


def find_greys(palette: Pixels) -> Values | None:
    """Return what the values of a black-and-white palette stand for, 0 and 255; `None` for other palettes."""
    grey = palette[:, 0]
    is_plain = (palette == grey[:, None]).all() and np.isin(grey, (0, 255)).all()
    return grey if is_plain and (grey == 0).any() and (grey == 255).any() else None
