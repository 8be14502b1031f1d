from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from histoseg.engine import Plan
from histoseg.grid import plan_grid
from histoseg.readorder import ReadOrder
from histoseg.slide import ArraySlide, ScaledSlide, plan_scale


@given(st.integers(1, 120), st.integers(1, 200), st.sampled_from([0.5, 0.25, 0.19, 0.9]), st.data())
def test_no_unread_tile_needs_a_row_above_the_floor(
    width: int, height: int, spacing: float, data: st.DataObject
) -> None:
    """However far ahead tiles are read, and although the last ones mirror rows from far above."""
    slide = ArraySlide(np.zeros((height, width, 3), np.uint8), spacing)
    scaled = ScaledSlide(slide, plan_scale(slide, 0.5, tolerance=0.05, force=True))
    grid = plan_grid(scaled.m_size, (32, 32), overlap=12, halo=3, stride_multiple=2)
    runs = np.array(data.draw(st.lists(st.booleans(), min_size=grid.count, max_size=grid.count)))
    plan = Plan(grid, runs.reshape(grid.y.count, grid.x.count), "cosine", 2, 2)
    order, unread, floor = ReadOrder(scaled, plan), list(plan.iter_runs()), 0
    while unread:
        covers = [scaled.cover(tile.m_x, tile.m_y, 32, 32) for tile in unread]
        assert order.head == covers[0]
        assert floor <= order.floor <= min(cover[1] for cover in covers)
        assert all(cover[3] - order.floor <= order.tallest for cover in covers[:1])
        floor = order.floor
        tile = unread.pop(data.draw(st.integers(0, min(3, len(unread) - 1))))
        order.mark_read(tile.m_x, tile.m_y)
    assert order.head is None
    assert order.floor == height


@given(
    st.integers(1, 90), st.integers(1, 90), st.sampled_from([0.5, 0.25, 0.19, 0.9]),
    st.tuples(st.integers(-80, 120), st.integers(-80, 120), st.integers(1, 60), st.integers(1, 60)),
)  # fmt: skip
def test_cover_is_what_a_read_reads(
    width: int, height: int, spacing: float, region: tuple[int, int, int, int]
) -> None:
    reads = []

    class Noting(ArraySlide):
        def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
            reads.append((x, y, x + width, y + height))
            return super().read_level(level, x, y, width, height)

    slide = Noting(np.zeros((height, width, 3), np.uint8), spacing)
    scaled = ScaledSlide(slide, plan_scale(slide, 0.5, tolerance=0.05, force=True))
    scaled.read(*region)
    assert reads == [scaled.cover(*region)]
