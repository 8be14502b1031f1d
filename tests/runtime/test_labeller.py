from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from histoseg.blend import Band
from histoseg.grid import Grid, plan_grid
from histoseg.labeller import BandRows


def iter_parts(grid: Grid, columns: int):
    """Yield the finished part of every tile, panel by panel, as the engine does."""
    for panel in grid.cut_panels(columns):
        for tile in grid.iter_tiles(panel.columns):
            x0, y0, _, _ = tile.m_write
            shape = (grid.y.final_before(tile.row + 1) - y0, grid.x.final_before(tile.column + 1) - x0)
            if x0 >= panel.m_x0:
                yield Band(y0, np.zeros((*shape, 1), np.float32), np.ones(shape, bool), x0)


@given(
    st.tuples(st.integers(1, 150), st.integers(1, 90)), st.integers(1, 6), st.booleans(), st.integers(0, 14)
)
def test_rows_are_read_once_for_each_panel_and_never_beyond_it(
    size: tuple[int, int], columns: int, crop: bool, more: int
) -> None:
    width, height = size
    grid = plan_grid(size, (32, 32), overlap=6 + more, halo=3, stride_multiple=2, crop=crop)
    mask = np.arange(width * height).reshape(height, width)
    panels, times, widest = grid.cut_panels(columns), np.zeros((height, width), int), 0

    def read(m_y: int, count: int, m_x0: int, m_x1: int) -> np.ndarray:
        nonlocal widest
        times[m_y : m_y + count, m_x0:m_x1] += 1
        widest = max(widest, m_x1 - m_x0)
        return mask[m_y : m_y + count, m_x0:m_x1]

    rows, seen = BandRows(read, panels), np.full((height, width), -1)
    for part in iter_parts(grid, columns):
        height_, width_ = part.covered.shape
        seen[part.m_y : part.m_y + height_, part.m_x : part.m_x + width_] = rows.cut(part)
    np.testing.assert_array_equal(seen, mask)
    assert (times == 1).all()
    assert widest == max(panel.m_x1 - panel.m_x0 for panel in panels)


def test_what_was_read_before_is_gone_when_more_is_read() -> None:
    grid = plan_grid((60, 60), (32, 32), overlap=6, halo=3, stride_multiple=2)

    def read(m_y: int, count: int, m_x0: int, m_x1: int) -> np.ndarray:
        assert rows._rows is None
        return np.zeros((count, m_x1 - m_x0), np.uint8)

    rows = BandRows(read, grid.cut_panels(1))
    for part in iter_parts(grid, 1):
        assert rows.cut(part).shape == part.covered.shape
