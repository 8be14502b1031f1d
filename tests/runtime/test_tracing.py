from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.chains import follow
from histoseg.rings import Polygons, simplify_polygons
from histoseg.tracing import RegionTracer

CLASSES = 4
label_images = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, CLASSES - 1)
)
# mostly one class, so that regions are large, ragged and full of holes
dense_images = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.sampled_from([0, 1, 1, 1])
)
images = st.one_of(label_images, dense_images)
cut_lists = st.lists(st.integers(1, 24), max_size=6)


def trace(
    labels: np.ndarray, cuts: Iterable[int] = (), background: int = 0, **options: int
) -> list[Polygons]:
    """Trace labels in blocks that end at `cuts`."""
    tracer, batches, top = RegionTracer(labels.shape[1], background, **options), [], 0
    for bottom in [*sorted(set(cuts) & set(range(1, len(labels)))), len(labels)]:
        batches += tracer.add(labels[top:bottom])
        top = bottom
    return [*batches, *tracer.close()]


def iter_polygons(batches: list[Polygons]) -> Iterator[tuple[int, int, list[np.ndarray]]]:
    """Yield class, area and rings of each polygon."""
    for batch in batches:
        rings = iter(np.split(batch.points, np.cumsum(batch.sizes)[:-1]))
        for value, area, count in zip(batch.values, batch.areas_px, batch.counts, strict=True):
            yield int(value), int(area), [next(rings) for _ in range(count)]


def as_shape(rings: list[np.ndarray], scale: float = 1) -> shapely.Polygon:
    return shapely.Polygon(rings[0] * scale, [ring * scale for ring in rings[1:]])


def paint(batches: list[Polygons], shape: tuple[int, int], background: int) -> np.ndarray:
    """Rasterise polygons by shapely, and check that no two overlap."""
    labels = np.full(shape, background, np.uint8)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    for value, area, rings in iter_polygons(batches):
        inside = shapely.contains_xy(as_shape(rings), x, y)
        assert inside.sum() == area
        assert (labels[inside] == background).all()
        labels[inside] = value
    return labels


def count_regions(labels: np.ndarray, background: int) -> int:
    classes = set(np.unique(labels).tolist()) - {background}
    counts = (cv2.connectedComponents(np.uint8(labels == c), connectivity=4)[0] - 1 for c in classes)
    return sum(counts)


def picture(*rows: str) -> np.ndarray:
    return np.array([[int(mark != ".") for mark in row] for row in rows], np.uint8)


@settings(max_examples=200)
@given(images, cut_lists, st.integers(0, CLASSES - 1))
@example(picture("#"), [], 0)
@example(picture("##.", "#.#", ".##"), [1], 0)
@example(picture("###", "#.#", "##."), [2], 0)
@example(picture("#####", "#.#.#", "#####"), [], 0)
@example(picture("#####", "#...#", "#.#.#", "#...#", "#####"), [1, 2, 3, 4], 0)
def test_polygons_painted_give_the_labels_back(labels: np.ndarray, cuts: list[int], background: int) -> None:
    batches = trace(labels, cuts, background)
    assert all(batch.points.dtype == np.int32 for batch in batches)
    np.testing.assert_array_equal(paint(batches, labels.shape, background), labels)
    assert sum(len(batch.values) for batch in batches) == count_regions(labels, background)


@settings(max_examples=200)
@given(images, cut_lists)
def test_rings_are_valid_and_run_as_geojson_wants_them(labels: np.ndarray, cuts: list[int]) -> None:
    for _, area, rings in iter_polygons(trace(labels, cuts)):
        shape = as_shape(rings)
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert shape.area == area
        assert shape.exterior.is_ccw
        assert not any(hole.is_ccw for hole in shape.interiors)
        assert all(len(set(map(tuple, ring.tolist()))) == len(ring) for ring in rings)


@settings(max_examples=200)
@given(images, cut_lists)
def test_simplified_rings_are_valid_and_within_half_a_pixel(labels: np.ndarray, cuts: list[int]) -> None:
    for batch in trace(labels, cuts):
        simple = simplify_polygons(batch)
        assert simple.vertices.sum() <= batch.vertices.sum()
        np.testing.assert_array_equal(simple.areas_px, batch.areas_px)
        pairs = zip(iter_polygons([simple]), iter_polygons([batch]), strict=True)
        for (_, _, cut), (_, _, exact) in pairs:
            shape, whole = as_shape(cut, 0.5), as_shape(exact)
            assert shape.is_valid, shapely.is_valid_reason(shape)
            for ring, original in zip(cut, exact, strict=True):
                lines = shapely.LinearRing(ring / 2), shapely.LinearRing(original)
                assert lines[0].is_ccw == lines[1].is_ccw
                assert shapely.hausdorff_distance(*lines, densify=0.1) <= 0.5
            assert shape.exterior.is_ccw == whole.exterior.is_ccw


@given(images, cut_lists)
def test_where_blocks_end_changes_no_polygon(labels: np.ndarray, cuts: list[int]) -> None:
    def gather(batches: list[Polygons]) -> list[tuple[int, int, list[list[list[int]]]]]:
        found = iter_polygons(batches)
        return sorted((value, area, [ring.tolist() for ring in rings]) for value, area, rings in found)

    assert gather(trace(labels, cuts)) == gather(trace(labels))


@given(images)
def test_the_first_corner_names_a_region(labels: np.ndarray) -> None:
    batches = trace(labels, range(1, 24, 3))
    corners = [(int(v), *c) for b in batches for v, c in zip(b.values, b.corners.tolist(), strict=True)]
    assert len(set(corners)) == len(corners)
    for value, x, y in corners:
        assert labels[y, x] == value


def test_a_region_is_handed_on_with_its_last_row_and_then_forgotten() -> None:
    labels = np.zeros((6, 9), np.uint8)
    labels[0:3, 0:3] = 1
    labels[0:6, 5:8] = 1
    tracer = RegionTracer(9, 0)
    batches = [*(tracer.add(labels[row : row + 1]) for row in range(6)), tracer.close()]
    assert [len(polygons.values) for (polygons,) in batches] == [0, 0, 0, 1, 0, 0, 1]
    assert tracer.cut_count == 0


@given(images, cut_lists, st.integers(0, CLASSES - 1), st.integers(1, 8))
def test_a_region_of_too_many_edges_is_cut_into_pieces_that_meet(
    labels: np.ndarray, cuts: list[int], background: int, max_edges: int
) -> None:
    batches = trace(labels, cuts, background, max_edges=max_edges)
    np.testing.assert_array_equal(paint(batches, labels.shape, background), labels)
    for _, area, rings in iter_polygons(batches):
        assert as_shape(rings).is_valid
        assert as_shape(rings).area == area


def test_only_the_large_region_is_cut() -> None:
    labels = np.zeros((8, 40), np.uint8)
    labels[:, 20:40] = 1
    labels[1:8:2, 21:39:2] = 0  # 36 holes
    labels[:, 5:8] = 2
    tracer = RegionTracer(40, 0, max_edges=30)
    batches = [*(b for row in range(0, 8, 2) for b in tracer.add(labels[row : row + 2])), *tracer.close()]
    values = [value for value, _, _ in iter_polygons(batches)]
    assert values.count(2) == 1
    assert values.count(1) == tracer.cut_count + 1 > 1


def test_a_ring_that_meets_itself_in_a_point_becomes_a_ring_and_a_hole() -> None:
    labels = picture("###", "#.#", "##.")
    ((_, area, rings),) = iter_polygons(trace(labels))
    assert area == 7
    assert [len(ring) for ring in rings] == [6, 4]
    outer, hole = (set(map(tuple, ring.tolist())) for ring in rings)
    assert outer & hole == {(2, 2)}


def test_straight_sides_stay_where_they_are() -> None:
    labels = np.zeros((40, 80), np.uint8)
    labels[5:30, 5:70] = 1
    labels[4, 25:45] = 1  # a step beside sides longer than what is cut
    for batch in trace(labels):
        np.testing.assert_array_equal(simplify_polygons(batch).points, 2 * batch.points)


def test_a_diagonal_becomes_one_line() -> None:
    labels = np.tri(12, dtype=np.uint8)
    ((_, _, rings),) = iter_polygons([simplify_polygons(batch) for batch in trace(labels)])
    assert len(rings[0]) <= 5
    assert len(rings[0]) < sum(batch.vertices.sum() for batch in trace(labels)) / 4


@pytest.mark.parametrize("step", [7, 64, 1000])
def test_real_nuclei_come_back(shared_data: Path, step: int) -> None:
    path = min((shared_data / "monuseg" / "masks").iterdir())
    labels = np.uint8(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127)
    batches = trace(labels, range(step, 1000, step))
    painted = np.zeros_like(labels)
    for value, area, rings in iter_polygons(batches):
        before = np.count_nonzero(painted)
        fill(painted, rings, value)
        assert np.count_nonzero(painted) - before == area
    np.testing.assert_array_equal(painted, labels)
    assert sum(len(batch.values) for batch in batches) == count_regions(labels, 0)


def fill(labels: np.ndarray, rings: list[np.ndarray], value: int) -> None:
    """Fill pixels by counting the sides to their left."""
    low, high = rings[0].min(axis=0), rings[0].max(axis=0)
    crossings = np.zeros((high[1] - low[1], high[0] - low[0] + 1), np.int32)
    for ring in rings:
        for (x, y), (next_x, next_y) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if x == next_x:
                crossings[min(y, next_y) - low[1] : max(y, next_y) - low[1], x - low[0]] += 1
    inside = np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1
    labels[low[1] : high[1], low[0] : high[0]][inside] = value


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)))
def test_chains_are_followed_as_one_would_by_hand(order: list[int], ends: set[int]) -> None:
    after = np.array([-1 if index in ends else target for index, target in enumerate(order)])
    chains = follow(after)
    assert sorted(chains.order.tolist()) == list(range(12))
    parts = np.split(chains.order, np.cumsum(chains.sizes)[:-1])
    assert chains.open_count == len(ends)
    for number, part in enumerate(parts):
        assert (chains.chain[part] == number).all()
        assert (after[part[:-1]] == part[1:]).all()
        assert after[part[-1]] == (-1 if number < chains.open_count else part[0])


def test_nothing_is_traced_of_background_alone() -> None:
    assert [len(batch.points) for batch in trace(np.full((5, 3), 2, np.uint8), [2], background=2)] == [
        0,
        0,
        0,
    ]
