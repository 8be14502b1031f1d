"""What a run writes: one module for each output. Each eats bands of labels from top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from histoseg.arrays import Labels


class LabelSink(Protocol):
    """Anything that eats bands of labels and is closed once the last has come."""

    def add(self, m_y: int, labels: Labels) -> None:
        """Take rows `m_y` and below, `(rows, slide width)`; bands come in order and without gaps."""
        ...

    def close(self) -> None:
        """Finish the output."""
        ...
