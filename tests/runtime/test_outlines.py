from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import histoseg.outlines
from histoseg.annotations import Region
from histoseg.outlines import Outlines

SIZE = (20, 18)

points = st.tuples(st.floats(-5, 25), st.floats(-5, 25))
on_grid = st.tuples(st.integers(-8, 50), st.integers(-8, 50)).map(lambda p: (p[0] / 2, p[1] / 2))
rings = st.lists(points | on_grid, min_size=3, max_size=9).map(lambda values: np.array(values, np.float64))
regions = st.lists(
    st.lists(rings, min_size=1, max_size=3).map(lambda drawn: Region(None, tuple(drawn))),
    min_size=1,
    max_size=4,
)


def lay(*drawn: Region, values: list[int] | None = None, scale: float = 1.0, size=SIZE) -> Outlines:
    return Outlines(drawn, values or [1] * len(drawn), l0_per_m=(scale, scale), m_size=size)


def is_inside(region: Region, x: float, y: float) -> bool:
    """Cast a ray to the left: the textbook even-odd rule, one pixel at a time."""
    crossings = 0
    for ring in region.rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if (y0 <= y) != (y1 <= y):
                low, high = ((x0, y0), (x1, y1)) if y0 <= y1 else ((x1, y1), (x0, y0))
                crossings += low[0] + (y - low[1]) * ((high[0] - low[0]) / (high[1] - low[1])) <= x
    return crossings % 2 == 1


@given(regions)
def test_a_pixel_takes_the_last_area_that_its_centre_is_inside_of(drawn: list[Region]) -> None:
    values = list(range(10, 10 + len(drawn)))
    rows = lay(*drawn, values=values).read(0, SIZE[1], background=3)
    for y, x in np.ndindex(rows.shape):
        inside = [v for v, region in zip(values, drawn, strict=True) if is_inside(region, x + 0.5, y + 0.5)]
        assert rows[y, x] == (inside[-1] if inside else 3)


layered = st.lists(
    st.tuples(regions, st.lists(st.booleans(), min_size=4, max_size=4)), min_size=1, max_size=3
)


@given(layered, st.integers(0, 10), st.integers(1, 40))
def test_what_erases_is_cut_out_of_its_own_layer_wherever_it_stands(
    layers: list[tuple[list[Region], list[bool]]], top: int, cut_px: int
) -> None:
    drawn = [
        Region(None, region.rings, erases, layer)
        for layer, (positives, flags) in enumerate(layers)
        for region, erases in zip(positives, flags, strict=False)
    ]
    values = list(range(10, 10 + len(drawn)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histoseg.outlines, "CUT_PX", cut_px)
        rows = lay(*drawn, values=values).read(top, 8, 2, 15, background=3)
    for y, x in np.ndindex(rows.shape):
        expected = 3
        around = [is_inside(region, x + 2.5, y + top + 0.5) for region in drawn]
        for layer in range(len(layers)):
            here = [
                (region.erases, value)
                for region, value, inside in zip(drawn, values, around, strict=True)
                if inside and region.layer == layer
            ]
            if here and not any(erases for erases, _ in here):
                expected = here[-1][1]
        assert rows[y, x] == expected


@given(regions, st.integers(1, 18), st.sampled_from([1.0, 0.5, 3.0, 0.7]))
def test_bands_of_any_height_join_to_the_same_mask(drawn: list[Region], height: int, scale: float) -> None:
    outlines = lay(*drawn, values=list(range(1, 1 + len(drawn))), scale=scale)
    bands = [outlines.read(top, min(height, SIZE[1] - top)) for top in range(0, SIZE[1], height)]
    np.testing.assert_array_equal(np.concatenate(bands), outlines.read(0, SIZE[1]))


@given(regions, st.integers(0, SIZE[0]), st.integers(0, SIZE[0]), st.sampled_from([1.0, 0.5, 3.0, 0.7]))
def test_some_columns_equal_those_of_the_whole_mask(
    drawn: list[Region], one: int, other: int, scale: float
) -> None:
    x0, x1 = sorted((one, other))
    outlines = lay(*drawn, values=list(range(1, 1 + len(drawn))), scale=scale)
    np.testing.assert_array_equal(outlines.read(2, 9, x0, x1), outlines.read(2, 9)[:, x0:x1])


@given(
    regions, st.integers(1, 8), st.integers(1, 40), st.integers(1, 30), st.integers(1, 5), st.integers(0, 9)
)
def test_what_is_worked_on_at_a_time_changes_nothing(
    drawn: list[Region], chain: int, corners: int, crossings: int, spans: int, long: int
) -> None:
    expected = lay(*drawn, values=list(range(1, 1 + len(drawn)))).read(2, 14)
    limits = {"CHAIN": chain, "CORNERS": corners, "CROSSINGS": crossings, "SPANS": spans, "LONG_SPAN": long}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items():
            patch.setattr(histoseg.outlines, name, value)
        outlines = lay(*drawn, values=list(range(1, 1 + len(drawn))))
        np.testing.assert_array_equal(outlines.read(2, 14), expected)


@given(hnp.arrays(bool, (6, 7)))
def test_outlines_along_pixel_edges_give_back_the_pixels(mask: np.ndarray) -> None:
    squares = tuple(
        np.array([[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]], np.float64) for y, x in np.argwhere(mask)
    )
    if squares:
        np.testing.assert_array_equal(lay(Region(None, squares), size=(7, 6)).read(0, 6), mask)


@given(regions)
def test_nothing_lies_outside_the_box_around_all_areas(drawn: list[Region]) -> None:
    outlines = lay(*drawn)
    x0, y0, x1, y1 = outlines.m_box
    assert 0 <= x0 <= x1 <= SIZE[0]
    assert 0 <= y0 <= y1 <= SIZE[1]
    rows = outlines.read(0, SIZE[1])
    rows[y0:y1, x0:x1] = 0
    assert not rows.any()
    assert outlines.reach_mask() or not outlines.read(0, SIZE[1]).any()


def test_thousands_of_areas_against_opencv() -> None:
    """It draws outlines too: nothing may differ but the rim."""
    rng, angle = np.random.default_rng(0), np.linspace(0, 2 * np.pi, 20, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    centers, radii = rng.uniform(20, 980, (3000, 2)), rng.uniform(3, 12, 3000)
    circles = [c + r * circle for c, r in zip(centers, radii, strict=True)]
    rows = lay(*(Region(None, (ring,)) for ring in circles), size=(1000, 1000)).read(0, 1000)
    expected = np.zeros((1000, 1000), np.uint8)
    for ring in circles:
        cv2.fillPoly(expected, [np.round((ring - 0.5) * 256).astype(np.int32)], 1, shift=8)
    assert 0.3 < rows.mean() < 0.9
    square = np.ones((3, 3), np.uint8)
    assert (expected <= cv2.dilate(rows, square)).all()
    assert (expected >= cv2.erode(rows, square, borderValue=1)).all()
