"""Puts the labels of panels side by side, so that outputs see rows of the whole slide.

Panels are run one after another from top to bottom. Their labels wait, compressed, in a temporary file.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from histoseg.errors import OutputError

if TYPE_CHECKING:
    from histoseg.arrays import Labels

# Rows are handed on in slices of this height: what outputs do with them at once stays small on a wide slide.
SLICE_ROWS = 64


class LabelSpool:
    """Labels of panels on disk. A context manager: leaving it drops them."""

    def __init__(self, folder: Path) -> None:
        """Begin an empty spool in `folder`."""
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".panels-")  # noqa: SIM115
        self._slices: dict[int, list[tuple[int, int, int]]] = {}

    def __enter__(self) -> Self:
        """Return the spool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop what was stored."""
        self._file.close()

    def add(self, m_y: int, labels: Labels) -> None:
        """Store rows `m_y` and below of a panel; panels come left to right, each with the same rows.

        Raises:
            OutputError: The disk is full.
        """
        for y, rows in iter_slices(m_y, labels):
            data = zlib.compress(rows.tobytes(), 1)
            try:
                self._file.write(data)
            except OSError as error:
                raise OutputError(f"cannot store labels of a panel ({error}); free space") from error
            place = (self._file.tell() - len(data), len(data), labels.shape[1])
            self._slices.setdefault(y, []).append(place)

    def iter_rows(self) -> Iterator[tuple[int, Labels]]:
        """Yield `m_y` and labels over the slide's whole width, from top to bottom."""
        for m_y in sorted(self._slices):
            yield m_y, np.concatenate([self._load(*place) for place in self._slices[m_y]], axis=1)

    def _load(self, offset: int, length: int, width: int) -> Labels:
        self._file.seek(offset)
        return np.frombuffer(zlib.decompress(self._file.read(length)), np.uint8).reshape(-1, width)


def join_panels(
    rows: Iterable[tuple[int, Labels]], panels: int, folder: Path
) -> Iterator[tuple[int, Labels]]:
    """Yield `m_y` and labels over the slide's whole width, at most `SLICE_ROWS` rows at a time.

    Args:
        rows: `m_y` and labels of each panel's rows, panel by panel.
        panels: Number of panels.
        folder: Where labels wait if there are several.
    """
    if panels == 1:
        for m_y, labels in rows:
            yield from iter_slices(m_y, labels)
        return
    with LabelSpool(folder) as spool:
        for m_y, labels in rows:
            spool.add(m_y, labels)
        yield from spool.iter_rows()


def iter_slices(m_y: int, labels: Labels) -> Iterator[tuple[int, Labels]]:
    """Yield rows `m_y` and below in slices of at most `SLICE_ROWS` rows."""
    for top in range(0, len(labels), SLICE_ROWS):
        yield m_y + top, labels[top : top + SLICE_ROWS]
