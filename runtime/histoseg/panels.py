"""Puts the labels of panels side by side, so that outputs see rows of the whole slide.

Panels are run one after another from top to bottom. Their labels wait, compressed, in a temporary file.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from histoseg.errors import OutputError
from histoseg.finished import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Rows are handed on in slices of this height: what outputs do with them at once stays small on a wide slide.
SLICE_ROWS = 64


class RowSpool:
    """Rows of panels on disk. A context manager: leaving it drops them."""

    def __init__(self, folder: Path) -> None:
        """Begin an empty spool in `folder`."""
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".panels-")  # noqa: SIM115
        self._slices: dict[int, list[tuple[_Place, _Place | None]]] = {}

    def __enter__(self) -> Self:
        """Return the spool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop what was stored."""
        self._file.close()

    def add(self, rows: Rows) -> None:
        """Store rows of a panel; panels come left to right, each with the same rows.

        Raises:
            OutputError: The disk is full.
        """
        for part in iter_slices(rows):
            shares = None if part.shares is None else self._store(part.shares)
            self._slices.setdefault(part.m_y, []).append((self._store(part.labels), shares))

    def iter_rows(self) -> Iterator[Rows]:
        """Yield rows over the slide's whole width, from top to bottom."""
        for m_y in sorted(self._slices):
            labels, shares = zip(*self._slices[m_y], strict=True)
            yield Rows(m_y, self._load(labels), None if None in shares else self._load(shares))

    def _store(self, values: NDArray[np.uint8]) -> _Place:
        data = zlib.compress(values.tobytes(), 1)
        try:
            self._file.write(data)
        except OSError as error:
            raise OutputError(f"cannot store labels of a panel ({error}); free space") from error
        return _Place(self._file.tell() - len(data), len(data), values.shape)

    def _load(self, places: Iterable[_Place]) -> NDArray[np.uint8]:
        """Return what lies at these places side by side."""
        parts = []
        for place in places:
            self._file.seek(place.offset)
            data = zlib.decompress(self._file.read(place.length))
            parts.append(np.frombuffer(data, np.uint8).reshape(place.shape))
        return np.concatenate(parts, axis=1)


class _Place(NamedTuple):
    """Where an array lies in the spool."""

    offset: int
    length: int
    shape: tuple[int, ...]


def join_panels(rows: Iterable[Rows], panels: int, folder: Path) -> Iterator[Rows]:
    """Yield rows over the slide's whole width, at most `SLICE_ROWS` at a time.

    Args:
        rows: Those of each panel, panel by panel.
        panels: Number of panels.
        folder: Where they wait if there are several.
    """
    if panels == 1:
        for part in rows:
            yield from iter_slices(part)
        return
    with RowSpool(folder) as spool:
        for part in rows:
            spool.add(part)
        yield from spool.iter_rows()


def iter_slices(rows: Rows) -> Iterator[Rows]:
    """Yield rows in slices of at most `SLICE_ROWS`."""
    for top in range(0, len(rows.labels), SLICE_ROWS):
        yield rows.cut(top, top + SLICE_ROWS)
