"""Regroup rows of any count into blocks of a fixed height."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from histoseg.arrays import Labels


class RowBlocks:
    """Collects rows and gives them back in blocks of `height` rows; holds less than one block."""

    def __init__(self, height: int) -> None:
        """Start empty."""
        self._height = height
        self._kept: list[Labels] = []
        self._count = 0

    def push(self, rows: Labels) -> Iterator[Labels]:
        """Take `(rows, width)` and yield every block that is complete."""
        while self._count + len(rows) >= self._height:
            need = self._height - self._count
            yield np.concatenate([*self._kept, rows[:need]])
            rows, self._kept, self._count = rows[need:], [], 0
        if len(rows):
            self._kept.append(rows.copy())
            self._count += len(rows)

    def rest(self) -> Labels | None:
        """Return the last, incomplete block, if there is one."""
        return np.concatenate(self._kept) if self._kept else None
