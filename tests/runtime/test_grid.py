from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.grid import Axis, Grid, plan_axis, plan_grid


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    """Any axis that can be laid: odd lengths, slides smaller than a tile, overlaps over half a tile."""
    stride = draw(st.sampled_from([1, 2, 3, 4, 8, 16, 32]))
    halo = draw(st.integers(0, 20))
    step = stride * draw(st.integers(1, 6))
    tile = step + 2 * halo + draw(st.integers(0, 70))
    overlap = draw(st.integers(2 * halo, tile - step))
    length, crop = draw(st.integers(1, 400)), draw(st.booleans())
    return plan_axis(length, tile, overlap=overlap, halo=halo, stride_multiple=stride, crop=crop)


@given(axes())
def test_every_pixel_lies_in_some_write_range(axis: Axis) -> None:
    written = np.zeros(axis.length, int)
    for index in range(axis.count):
        begin, end = axis.write_range(index)
        written[begin:end] += 1
    assert written.min() >= 1


@given(axes())
def test_write_ranges_lie_inside_the_slide_and_in_the_valid_part_of_their_tile(axis: Axis) -> None:
    for index in range(axis.count):
        begin, end = axis.write_range(index)
        assert 0 <= begin < end <= axis.length
        assert axis.start(index) + axis.halo <= begin
        assert end <= axis.start(index) + axis.tile - axis.halo


@given(axes())
def test_cropped_tiles_meet_and_others_share_their_fade(axis: Axis) -> None:
    for index in range(axis.count - 1):
        end, begin = axis.write_range(index)[1], axis.write_range(index + 1)[0]
        assert end - begin == axis.fade
        assert axis.fade == (0 if axis.crop else axis.tile - 2 * axis.halo - axis.step)


@given(axes())
def test_no_tile_could_be_left_out_at_the_end(axis: Axis) -> None:
    without_last = [
        axis.start(index) + axis.tile - axis.halo for index in range(axis.count - 1)
    ]  # also when the last tile's neighbour gives it half of what they share
    assert max(without_last, default=0) < axis.length


@given(
    st.integers(1, 500),
    st.sampled_from([1, 2, 4, 16, 32]),
    st.integers(0, 20),
    st.integers(0, 40),
    st.integers(1, 200),
)
def test_steps_and_starts_are_multiples_of_the_stride(
    length: int, stride: int, halo: int, more: int, free: int
) -> None:
    overlap = 2 * halo + more
    axis = plan_axis(length, overlap + stride + free, overlap=overlap, halo=halo, stride_multiple=stride)
    assert axis.step % stride == 0
    assert axis.lead % stride == 0
    assert axis.lead >= halo
    assert axis.step >= 1
    assert axis.tile - axis.step >= overlap  # never less overlap than was asked for


@given(axes())
def test_final_before_is_monotone_and_no_later_tile_touches_what_is_final(axis: Axis) -> None:
    finals = [axis.final_before(index) for index in range(axis.count + 1)]
    assert finals == sorted(finals)
    assert finals[0] == 0
    assert finals[-1] == axis.length
    for index in range(axis.count):
        first_touched = min(axis.write_range(later)[0] for later in range(index, axis.count))
        assert finals[index] == first_touched


@given(axes(), axes())
def test_grid_lists_every_tile_once_row_by_row(x: Axis, y: Axis) -> None:
    grid = Grid(x, y)
    tiles = list(grid.iter_tiles())
    assert [(tile.row, tile.column) for tile in tiles] == sorted((t.row, t.column) for t in tiles)
    assert len(tiles) == len({(t.row, t.column) for t in tiles}) == grid.count == x.count * y.count
    for tile in tiles:
        assert tile == grid.tile_at(tile.row, tile.column)
        assert (tile.m_x, tile.m_y) == (x.start(tile.column), y.start(tile.row))
    assert grid.m_size == (x.length, y.length)
    assert grid.tile_size == (x.tile, y.tile)


@given(axes(), axes(), st.integers(1, 20))
def test_panels_finish_every_column_once_and_run_what_reaches_into_them(
    x: Axis, y: Axis, columns: int
) -> None:
    grid = Grid(x, y)
    panels = grid.cut_panels(columns)
    edges = [panel.m_x0 for panel in panels] + [panels[-1].m_x1]
    assert edges[0] == 0
    assert edges[-1] == x.length
    assert all(before.m_x1 == after.m_x0 for before, after in itertools.pairwise(panels))
    assert edges == sorted(set(edges))
    for panel in panels:
        reaching = [
            column
            for column in range(x.count)
            if x.write_range(column)[0] < panel.m_x1 and x.write_range(column)[1] > panel.m_x0
        ]
        assert list(panel.columns) == reaching
        assert len([c for c in panel.columns if x.write_range(c)[0] >= panel.m_x0]) <= columns


def test_sizes_are_given_as_width_and_height() -> None:
    grid = plan_grid((100, 10), (64, 32), overlap=8, halo=2, stride_multiple=4)
    assert grid.m_size == (100, 10)
    assert grid.tile_size == (64, 32)
    assert grid.x.count > grid.y.count == 1


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "halo", "stride", "said"),
    [
        (0, 64, 8, 2, 1, "length is 0"),
        (100, 64, 8, 5, 1, "twice the halo"),
        (100, 64, 64, 5, 1, "at most 63"),
        (100, 64, 40, 5, 32, "at most 32"),
    ],
)
def test_impossible_axes_are_refused(
    length: int, tile: int, overlap: int, halo: int, stride: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        plan_axis(length, tile, overlap=overlap, halo=halo, stride_multiple=stride)
