"""Which rows of a level a run still needs, while its tiles are read in about their order."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from histoseg.engine import Plan
    from histoseg.scale import ScaledSlide
    from histoseg.strips import Region


class ReadOrder:
    """The tiles of a plan of one panel, from the first that was not read. Not safe from several threads."""

    def __init__(self, slide: ScaledSlide, plan: Plan) -> None:
        """Begin with no tile read."""
        self._slide = slide
        self._size = plan.grid.tile_size
        self._tiles = plan.iter_runs()
        self._head = next(self._tiles, None)
        self._read: set[tuple[int, int]] = set()
        self._height = slide.slide.level_sizes[slide.scale.level][1]
        covers = [slide.cover(0, plan.grid.y.start(row), *self._size) for row in range(plan.grid.y.count)]
        # the last tiles mirror rows from far above: what a row of tiles needs, some below it may need, too
        self._floors = list(accumulate((cover[1] for cover in reversed(covers)), min))[::-1]
        self.tallest = max(cover[3] - floor for cover, floor in zip(covers, self._floors, strict=True))
        """The most level rows from what a row of tiles needs to keep to where it ends."""

    @property
    def floor(self) -> int:
        """No tile that is still to be read needs a level row above this one."""
        return self._height if self._head is None else self._floors[self._head.row]

    @property
    def head(self) -> Region | None:
        """What the first unread tile needs of the level; `None` when all were read."""
        return self._slide.cover(self._head.m_x, self._head.m_y, *self._size) if self._head else None

    def mark_read(self, m_x: int, m_y: int) -> None:
        """Note that the tile at a place was read."""
        self._read.add((m_x, m_y))
        while self._head and (self._head.m_x, self._head.m_y) in self._read:
            self._read.remove((self._head.m_x, self._head.m_y))
            self._head = next(self._tiles, None)
