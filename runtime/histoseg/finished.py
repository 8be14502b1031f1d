"""What a run hands on to its outputs: rows that no later tile changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from histoseg.arrays import Labels, Shares


@dataclass(frozen=True)
class Rows:
    """Finished rows, over the width of a panel or of the slide."""

    m_y: int
    """The first row, in model pixels."""
    labels: Labels
    shares: Shares | None = None
    """What the labels come from, `(rows, columns, classes)`, 255 for a probability of 1; where asked for."""

    def cut(self, begin: int, end: int) -> Rows:
        """Return some of the rows, counted from the first of these."""
        shares = None if self.shares is None else self.shares[begin:end]
        return Rows(self.m_y + begin, self.labels[begin:end], shares)
