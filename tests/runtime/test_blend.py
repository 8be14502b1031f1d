from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.blend import Band, Blender, build_ramp, build_weights, join_bands, label_band
from histoseg.card import Blend
from histoseg.grid import Axis, Grid, Panel, plan_axis

BLENDS = get_args(Blend)
blends = st.sampled_from(BLENDS)


@st.composite
def axes(draw: st.DrawFn, *, longest: int = 120) -> Axis:
    stride = draw(st.sampled_from([1, 2, 4]))
    halo = draw(st.integers(0, 6))
    step = stride * draw(st.integers(1, 5))
    tile = step + 2 * halo + draw(st.integers(0, 30))
    overlap = draw(st.integers(2 * halo, tile - step))
    return plan_axis(draw(st.integers(1, longest)), tile, overlap=overlap, halo=halo, stride_multiple=stride)


def crop_if(axis: Axis, blend: Blend) -> Axis:
    return dataclasses.replace(axis, crop=blend == "crop")


def sum_weights(axis: Axis, blend: Blend) -> np.ndarray:
    axis = crop_if(axis, blend)
    total = np.zeros(axis.length, np.float64)
    for index in range(axis.count):
        begin, end = axis.write_range(index)
        total[begin:end] += build_weights(axis, index, blend)
    return total


def stitch(
    grid: Grid, blend: Blend, predict, ran=lambda tile: True, channels: int = 2, panel: Panel | None = None
) -> list[Band]:
    """Blend `predict(tile)` over a grid or a panel of it, leaving out tiles that did not run."""
    grid = Grid(crop_if(grid.x, blend), crop_if(grid.y, blend))
    blender, bands = Blender(grid, channels, blend, panel), []
    for row in range(grid.y.count):
        tiles = [grid.tile_at(row, column) for column in (panel.columns if panel else range(grid.x.count))]
        parts = [blender.add(tile, predict(tile).copy() if ran(tile) else None) for tile in tiles]
        bands.append(join_bands([part for part in parts if not panel or part.m_x >= panel.m_x0]))
    return bands


@given(st.integers(0, 100))
def test_the_cosine_ramp_and_its_mirror_image_sum_to_one(fade: int) -> None:
    ramp = build_ramp(fade, "cosine")
    np.testing.assert_allclose(ramp + ramp[::-1], 1, atol=1e-6)
    assert (np.diff(ramp) >= 0).all()
    assert ramp.shape == (fade,)


@given(axes())
def test_cosine_is_a_partition_of_unity_where_two_tiles_meet(axis: Axis) -> None:
    if axis.fade <= axis.step:  # no three tiles share a pixel
        np.testing.assert_allclose(sum_weights(axis, "cosine"), 1, atol=1e-6)
    assert (sum_weights(axis, "cosine") > 0).all()


@given(axes())
def test_crop_gives_each_pixel_to_exactly_one_tile(axis: Axis) -> None:
    np.testing.assert_array_equal(sum_weights(axis, "crop"), 1)


@given(axes(), blends)
def test_weights_span_the_write_range_and_stay_flat_at_the_slides_border(axis: Axis, blend: Blend) -> None:
    axis = crop_if(axis, blend)
    for index in range(axis.count):
        begin, end = axis.write_range(index)
        weights = build_weights(axis, index, blend)
        assert weights.shape == (end - begin,)
        assert weights.dtype == np.float32
        assert (weights >= 0).all()
    if axis.count == 1:
        assert (build_weights(axis, 0, blend) == 1).all()


@given(
    axes(longest=60),
    axes(longest=60),
    blends,
    hnp.arrays(np.float32, 3, elements=st.floats(0, 1, width=32)),
    st.data(),
)
def test_a_constant_field_stitches_to_exactly_that_constant(
    x: Axis, y: Axis, blend: Blend, values: np.ndarray, data: st.DataObject
) -> None:
    grid = Grid(x, y)
    skipped = data.draw(st.sets(st.tuples(st.integers(0, y.count - 1), st.integers(0, x.count - 1))))
    field = np.broadcast_to(values, (y.tile, x.tile, 3))
    bands = stitch(grid, blend, lambda tile: field, lambda t: (t.row, t.column) not in skipped, channels=3)
    result = np.concatenate([band.probabilities for band in bands])
    covered = np.concatenate([band.covered for band in bands])
    np.testing.assert_array_equal(result[covered], np.broadcast_to(values, (covered.sum(), 3)))
    assert not result[~covered].any()
    if not skipped:
        assert covered.all()


@given(axes(longest=60), axes(longest=60), blends)
def test_bands_cover_every_row_once_and_in_order(x: Axis, y: Axis, blend: Blend) -> None:
    grid = Grid(x, y)
    bands = stitch(grid, blend, lambda tile: np.ones((y.tile, x.tile, 2), np.float32))
    top = 0
    for band in bands:
        assert band.m_y == top
        assert band.probabilities.shape == (*band.covered.shape, 2)
        assert band.covered.shape[1] == x.length
        assert len(band.covered) > 0
        top += len(band.covered)
    assert top == y.length


@given(axes(longest=60), axes(longest=60), st.integers(0, 2**32 - 1))
def test_crop_keeps_the_prediction_of_one_tile_bit_for_bit(x: Axis, y: Axis, seed: int) -> None:
    grid = Grid(crop_if(x, "crop"), crop_if(y, "crop"))
    rng = np.random.default_rng(seed)
    predictions = {
        (tile.row, tile.column): rng.random((y.tile, x.tile, 1), np.float32) for tile in grid.iter_tiles()
    }
    bands = stitch(grid, "crop", lambda tile: predictions[tile.row, tile.column], channels=1)
    result = np.concatenate([band.probabilities for band in bands])[..., 0]
    expected = np.full(result.shape, np.nan, np.float32)
    for tile in grid.iter_tiles():
        x0, y0, x1, y1 = tile.m_write
        part = predictions[tile.row, tile.column][
            y0 - tile.m_y : y1 - tile.m_y, x0 - tile.m_x : x1 - tile.m_x, 0
        ]
        expected[y0:y1, x0:x1] = part
    np.testing.assert_array_equal(result, expected)


@given(axes(longest=50), axes(longest=50), blends, st.integers(0, 2**32 - 1))
def test_blending_is_the_weighted_mean_of_the_predictions(x: Axis, y: Axis, blend: Blend, seed: int) -> None:
    x, y = crop_if(x, blend), crop_if(y, blend)
    grid = Grid(x, y)
    rng = np.random.default_rng(seed)
    predictions = {
        (tile.row, tile.column): rng.random((y.tile, x.tile, 1), np.float32) for tile in grid.iter_tiles()
    }
    bands = stitch(grid, blend, lambda tile: predictions[tile.row, tile.column], channels=1)
    sums, weights = np.zeros((y.length, x.length)), np.zeros((y.length, x.length))
    for tile in grid.iter_tiles():
        x0, y0, x1, y1 = tile.m_write
        share = np.outer(build_weights(y, tile.row, blend), build_weights(x, tile.column, blend)).astype(
            float
        )
        part = predictions[tile.row, tile.column][
            y0 - tile.m_y : y1 - tile.m_y, x0 - tile.m_x : x1 - tile.m_x, 0
        ]
        sums[y0:y1, x0:x1] += share * part
        weights[y0:y1, x0:x1] += share
    result = np.concatenate([band.probabilities for band in bands])[..., 0]
    np.testing.assert_allclose(result, sums / weights, atol=1e-5)


@given(axes(longest=120), axes(longest=50), blends, st.integers(1, 5), st.integers(0, 2**32 - 1), st.data())
def test_panels_give_the_same_bytes_as_the_whole_width(
    x: Axis, y: Axis, blend: Blend, columns: int, seed: int, data: st.DataObject
) -> None:
    grid = Grid(crop_if(x, blend), crop_if(y, blend))
    rng = np.random.default_rng(seed)
    predictions = {
        (tile.row, tile.column): rng.random((y.tile, x.tile, 2), np.float32) for tile in grid.iter_tiles()
    }
    skipped = data.draw(st.sets(st.tuples(st.integers(0, y.count - 1), st.integers(0, x.count - 1))))

    def stitch_panel(panel: Panel | None) -> tuple[np.ndarray, np.ndarray]:
        bands = stitch(
            grid,
            blend,
            lambda t: predictions[t.row, t.column],
            lambda t: (t.row, t.column) not in skipped,
            panel=panel,
        )
        assert all(band.m_x == (panel.m_x0 if panel else 0) for band in bands)
        return (
            np.concatenate([band.probabilities for band in bands]),
            np.concatenate([band.covered for band in bands]),
        )

    whole, parts = stitch_panel(None), [stitch_panel(panel) for panel in grid.cut_panels(columns)]
    for index in (0, 1):
        joined = np.concatenate([part[index] for part in parts], axis=1)
        assert joined.tobytes() == whole[index].tobytes()


def test_a_blend_that_does_not_fit_its_grid_is_refused() -> None:
    axis = plan_axis(200, 32, overlap=16, halo=5, stride_multiple=1)
    with pytest.raises(ValueError, match="crop"):
        Blender(Grid(axis, axis), 2, "crop")
    cropped = dataclasses.replace(axis, crop=True)
    with pytest.raises(ValueError, match="cosine"):
        Blender(Grid(cropped, cropped), 2, "cosine")


def test_the_rim_inside_the_halo_is_never_used() -> None:
    axis = plan_axis(200, 32, overlap=16, halo=5, stride_multiple=1)
    grid = Grid(axis, axis)
    prediction = np.full((32, 32, 1), np.nan, np.float32)
    prediction[5:-5, 5:-5] = 0.25
    for blend in BLENDS:
        for band in stitch(grid, blend, lambda tile: prediction, channels=1):
            np.testing.assert_array_equal(band.probabilities, np.float32(0.25))


def stitched_bytes(grid: Grid) -> int:
    """Return the bytes that blending two rows of tiles holds at most."""
    field = np.zeros((grid.y.tile, grid.x.tile, 3), np.float32)
    tracemalloc.start()
    try:
        blender = Blender(grid, 3, "cosine")
        for tile in itertools.islice(grid.iter_tiles(), 2 * grid.x.count):
            blender.add(tile, field.copy())
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_depend_on_the_slides_height() -> None:
    x = plan_axis(300, 64, overlap=16, halo=4, stride_multiple=4)
    sizes = []
    for height in (500, 5_000, 50_000_000):
        y = plan_axis(height, 64, overlap=16, halo=4, stride_multiple=4)
        sizes.append(stitched_bytes(Grid(x, y)))
    assert max(sizes) - min(sizes) < 4096
    # one tile's pixels with their temporaries, and a cross-fade over the slide's width
    assert max(sizes) < 4 * 64 * 64 * (3 + 1) * 4 + 8 * 300 * (3 + 1) * 4


def test_what_no_tile_covered_becomes_background() -> None:
    probabilities = np.zeros((2, 3, 2), np.float32)
    probabilities[..., 0] = 1
    covered = np.array([[True, False, True], [False, False, True]])
    labels = label_band(Band(0, probabilities, covered), background=1)
    np.testing.assert_array_equal(labels, np.where(covered, 0, 1))
    assert labels.dtype == np.uint8


def test_skipped_tiles_leave_background_and_their_neighbours_intact() -> None:
    axis = plan_axis(100, 32, overlap=8, halo=0, stride_multiple=1)
    grid = Grid(axis, axis)
    field = np.broadcast_to(np.float32([0.1, 0.9]), (32, 32, 2))
    bands = stitch(grid, "cosine", lambda tile: field, lambda tile: tile.column == 0)
    labels = np.concatenate([label_band(band, background=0) for band in bands])
    end = axis.write_range(0)[1]
    assert (labels[:, :end] == 1).all()
    assert (labels[:, end:] == 0).all()


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)), st.floats(0.01, 0.99))
def test_threshold_decides_two_classes(nucleus: np.ndarray, threshold: float) -> None:
    band = Band(0, np.stack([1 - nucleus, nucleus], axis=-1), np.ones((3, 4), bool))
    np.testing.assert_array_equal(label_band(band, background=0, threshold=threshold), nucleus >= threshold)


@pytest.mark.parametrize("blend", BLENDS)
def test_a_tile_beyond_the_slide_is_no_error(blend: Blend) -> None:
    axis = plan_axis(1, 16, overlap=4, halo=2, stride_multiple=2)
    bands = stitch(Grid(axis, axis), blend, lambda tile: np.ones((16, 16, 2), np.float32))
    assert [band.probabilities.shape for band in bands] == [(1, 1, 2)]
