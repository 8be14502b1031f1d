"""Where tiles, write regions and bands lie. Integers only; no pixels.

Frame: everything here is in model pixels (`m_`), with the slide's top left corner at (0, 0).
Tiles start at `-lead` and advance by `step`, both multiples of the model's stride, until their valid part
covers the slide. A tile's *read region* may reach outside the slide, where the reader reflects.
Its *write region* is what its prediction may touch: the read region less the halo, clipped to the slide.
Write regions of neighbours overlap, so that predictions can fade into each other, or meet in the middle of
what they share (`crop`).

A wide slide may be cut into *panels*, ranges of columns that are run one after another from top to bottom.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis of `length` pixels.

    Neighbours share `tile - step` pixels; `halo` of them on either side are never written.
    """

    length: int
    tile: int
    step: int
    halo: int
    lead: int
    """Pixels by which the first tile starts before the slide: at least the halo."""
    crop: bool = False
    """Neighbours meet in the middle of what they share, instead of fading into each other."""

    @property
    def count(self) -> int:
        """Number of tiles: the fewest whose valid parts cover the axis."""
        reach = self.tile - self.lead - self.halo  # where the first tile's valid part ends
        return 1 + max(0, -(-(self.length - reach) // self.step))

    @property
    def shared(self) -> int:
        """Pixels over which the valid parts of two neighbours overlap."""
        return self.tile - 2 * self.halo - self.step

    @property
    def fade(self) -> int:
        """Pixels that two neighbours both write."""
        return 0 if self.crop else self.shared

    def start(self, index: int) -> int:
        """First pixel that tile `index` reads; negative where it reaches before the slide."""
        return index * self.step - self.lead

    def write_range(self, index: int) -> tuple[int, int]:
        """First and one-past-last pixel that tile `index` may write, within the slide."""
        begin, end = self.start(index) + self.halo, self.start(index) + self.tile - self.halo
        if self.crop:
            begin += self.shared // 2 if index > 0 else 0
            end -= self.shared - self.shared // 2 if index < self.count - 1 else 0
        return max(0, begin), min(self.length, end)

    def final_before(self, index: int) -> int:
        """Pixels before this one are touched by no tile from `index` on."""
        return self.length if index >= self.count else self.write_range(index)[0]

    def first_reaching(self, index: int) -> int:
        """First tile that writes a pixel which tile `index` writes, too, or one after it."""
        begin = self.final_before(index)
        return next(before for before in range(index + 1) if self.write_range(before)[1] > begin)


@dataclass(frozen=True)
class Tile:
    """One tile: its place in the grid and where it reads and writes, in model pixels."""

    row: int
    column: int
    m_x: int
    m_y: int
    m_write: tuple[int, int, int, int]
    """`(x0, y0, x1, y1)`, within the slide."""


@dataclass(frozen=True)
class Panel:
    """Columns of tiles that are run together, from the slide's top to its bottom."""

    columns: range
    """Those that run. The first ones may only lend what they share with the panel's own first column."""
    m_x0: int
    """The pixels that the panel finishes begin here, and end before `m_x1`."""
    m_x1: int


@dataclass(frozen=True)
class Grid:
    """The tiles of a slide, row by row."""

    x: Axis
    y: Axis

    @property
    def m_size(self) -> tuple[int, int]:
        """Width and height of the slide."""
        return self.x.length, self.y.length

    @property
    def tile_size(self) -> tuple[int, int]:
        """Width and height of every tile."""
        return self.x.tile, self.y.tile

    @property
    def count(self) -> int:
        """Number of tiles."""
        return self.x.count * self.y.count

    def tile_at(self, row: int, column: int) -> Tile:
        """Return the tile at a place in the grid."""
        (x0, x1), (y0, y1) = self.x.write_range(column), self.y.write_range(row)
        return Tile(row, column, self.x.start(column), self.y.start(row), (x0, y0, x1, y1))

    def iter_tiles(self, columns: range | None = None, rows: range | None = None) -> Iterator[Tile]:
        """Yield every tile, or those of some columns and rows, row by row, left to right."""
        for row in rows or range(self.y.count):
            for column in columns or range(self.x.count):
                yield self.tile_at(row, column)

    def cut_panels(self, columns: int) -> tuple[Panel, ...]:
        """Cut the slide into panels of at most `columns` columns of tiles, at least 1.

        A panel runs the tiles of its neighbour that reach into it once more, so that its pixels come from
        the same tiles in the same order as those of a slide that is not cut.
        """
        count = self.x.count
        return tuple(self._panel(first, min(first + columns, count)) for first in range(0, count, columns))

    def _panel(self, first: int, last: int) -> Panel:
        begin = self.x.first_reaching(first)
        return Panel(range(begin, last), self.x.final_before(first), self.x.final_before(last))


def plan_axis(
    length: int, tile: int, *, overlap: int, halo: int, stride_multiple: int, crop: bool = False
) -> Axis:
    """Lay tiles along one axis.

    Args:
        length: Pixels to cover, at least 1.
        tile: Tile size in pixels.
        overlap: Pixels that neighbours should share, at least twice `halo`; more where the step has to be
            rounded down to a multiple of the stride.
        halo: Rim of a prediction that the tile's border contaminates.
        stride_multiple: The model is shift-invariant under multiples of this.
        crop: Let neighbours meet in the middle of what they share.

    Raises:
        ValueError: The tiles cannot advance, or the overlap is smaller than two halos.
    """
    if length < 1:
        raise ValueError(f"length is {length}, expected at least 1")
    if overlap < 2 * halo:
        raise ValueError(f"overlap is {overlap} px, expected at least {2 * halo}: twice the halo")
    step = (tile - overlap) // stride_multiple * stride_multiple
    if step < 1:
        raise ValueError(
            f"overlap is {overlap} px, expected at most {tile - stride_multiple} for tiles of {tile} px "
            f"that advance by multiples of {stride_multiple} px"
        )
    lead = -(-halo // stride_multiple) * stride_multiple
    return Axis(length, tile, step, halo, lead, crop)


def plan_grid(
    m_size: tuple[int, int],
    tile_size: tuple[int, int],
    *,
    overlap: int,
    halo: int,
    stride_multiple: int,
    crop: bool = False,
) -> Grid:
    """Lay tiles over a slide of `m_size` (width, height) model pixels; see `plan_axis`."""
    x, y = (
        plan_axis(length, tile, overlap=overlap, halo=halo, stride_multiple=stride_multiple, crop=crop)
        for length, tile in zip(m_size, tile_size, strict=True)
    )
    return Grid(x, y)
