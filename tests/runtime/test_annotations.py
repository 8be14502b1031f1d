from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.annotations import Region, fill_region, load_regions
from histoseg.errors import AnnotationError, TruthError
from histoseg.slide import ArraySlide, plan_scale
from histoseg.truth import open_truth

SQUARE = [[2, 1], [8, 1], [8, 6], [2, 6], [2, 1]]
HOLE = [[4, 3], [6, 3], [6, 5], [4, 5], [4, 3]]

points = st.tuples(st.floats(-5, 25), st.floats(-5, 25))
rings = st.lists(points, min_size=3, max_size=9).map(lambda values: np.array(values, np.float64))


def write_geojson(path: Path, *features: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def feature(kind: str, coordinates: Any, name: str | None = None) -> dict[str, Any]:
    properties = {} if name is None else {"classification": {"name": name, "color": [1, 2, 3]}}
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


def fill(*regions: Region, shape: tuple[int, int] = (20, 20), scale: float = 1.0) -> np.ndarray:
    rows = np.zeros(shape, np.uint8)
    for region in regions:
        fill_region(rows, region, 0 if region.erases else 1, scale=(scale, scale), m_y=0)
    return rows


def is_inside(ring: np.ndarray, x: float, y: float) -> bool:
    """Cast a ray to the left: the textbook even-odd rule, one pixel at a time."""
    crossings = 0
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if (y0 <= y) != (y1 <= y):
            low, high = ((x0, y0), (x1, y1)) if y0 <= y1 else ((x1, y1), (x0, y0))
            crossings += low[0] + (y - low[1]) * ((high[0] - low[0]) / (high[1] - low[1])) <= x
    return crossings % 2 == 1


@given(rings)
def test_a_pixel_is_inside_when_its_centre_is(ring: np.ndarray) -> None:
    rows = fill(Region(None, (ring,)))
    for y, x in np.ndindex(rows.shape):
        assert rows[y, x] == is_inside(ring, x + 0.5, y + 0.5)


@given(rings, st.integers(1, 20), st.sampled_from([1.0, 0.5, 3.0]))
def test_bands_of_any_height_join_to_the_same_mask(ring: np.ndarray, height: int, scale: float) -> None:
    region = Region(None, (ring,))
    whole, bands = fill(region, scale=scale), np.zeros((20, 20), np.uint8)
    for top in range(0, 20, height):
        fill_region(bands[top : top + height], region, 1, scale=(scale, scale), m_y=top)
    np.testing.assert_array_equal(bands, whole)


@given(hnp.arrays(bool, (6, 7)))
def test_outlines_along_pixel_edges_give_back_the_pixels(mask: np.ndarray) -> None:
    squares = tuple(
        np.array([[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]], np.float64) for y, x in np.argwhere(mask)
    )
    rows = np.zeros(mask.shape, np.uint8)
    if squares:
        fill_region(rows, Region(None, squares), 1, scale=(1, 1), m_y=0)
    np.testing.assert_array_equal(rows, mask)


@pytest.mark.parametrize("packed", [False, True])
def test_qupath_polygons_have_holes_and_class_names(tmp_path: Path, packed: bool) -> None:
    path = write_geojson(
        tmp_path / "a.geojson",
        feature("Polygon", [SQUARE, HOLE], "Nucleus"),
        feature("MultiPolygon", [[SQUARE], [HOLE]]),
        feature("LineString", SQUARE),
    )
    if packed:
        path = path.with_name("a.geojson.gz")
        path.write_bytes(gzip.compress((tmp_path / "a.geojson").read_bytes()))
    first, *others = load_regions(path)
    assert [first.class_name] + [region.class_name for region in others] == ["Nucleus", None, None]
    rows = fill(first)
    assert rows.sum() == 6 * 5 - 2 * 2
    assert rows[1:6, 2:8].sum() == rows.sum()
    assert not rows[3:5, 4:6].any()


def test_imagescope_regions_of_each_kind(tmp_path: Path) -> None:
    def region(kind: str, corners: list[tuple[int, int]], negative: str = "0") -> str:
        vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in corners)
        return f'<Region Type="{kind}" NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'

    box, inner = [(1, 1), (9, 1), (9, 9), (1, 9)], [(3, 3), (5, 3), (5, 5), (3, 5)]
    body = region("0", box) + region("0", inner, "1") + region("2", [(11, 11), (19, 19)]) + region("4", box)
    path = tmp_path / "a.xml"
    path.write_text(
        f'<Annotations><Annotation Name="gland"><Regions>{body}</Regions></Annotation></Annotations>'
    )
    regions = load_regions(path)
    assert [r.class_name for r in regions] == ["gland"] * 3
    rows = fill(*regions)
    assert rows[1:9, 1:9].sum() == 64 - 4
    assert rows[11:19, 11:19].sum() == pytest.approx(np.pi * 16, rel=0.1)
    assert rows.sum() == rows[1:9, 1:9].sum() + rows[11:19, 11:19].sum()


def test_an_entity_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><Annotations>&c;</Annotations>')
    with pytest.raises(AnnotationError, match="EntitiesForbidden"):
        load_regions(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.geojson", "{"),
        ("a.geojson", '{"type": "FeatureCollection", "features": []}'),
        ("a.geojson", '{"features": 3}'),
        ("a.geojson", '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}]}'),
        ("a.geojson", "[" * 100_000),
        ("a.geojson.gz", "not packed"),
        ("a.xml", "<Annotations>"),
        ("a.xml", "<Annotations/>"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(AnnotationError) as caught:
        load_regions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truth_of_real_annotations_equals_the_published_mask_inside_its_drawn_outline(
    shared_data: Path,
) -> None:
    """MoNuSeg's masks were filled outline included, so they hold a rim that pixel centres leave out."""
    for path in sorted((shared_data / "monuseg" / "annotations").glob("*.xml"))[:4]:
        published = cv2.imread(str(shared_data / "monuseg" / "masks" / f"{path.stem}.png"), 0) > 127
        rows = fill(*load_regions(path), shape=published.shape).astype(bool)
        assert (rows & ~published).mean() < 1e-3
        grown = cv2.dilate(rows.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert (published & ~grown).mean() < 1e-3


def test_classes_are_found_by_name_whatever_the_case(tmp_path: Path, open_model) -> None:
    card = open_model("threshold").card
    slide = ArraySlide(np.zeros((40, 40, 3), np.uint8), 0.25)
    scale = plan_scale(slide, 0.5, tolerance=0.05)
    square = [[[4, 2], [16, 2], [16, 12], [4, 12]]]
    name = card.class_names[1].upper()
    path = write_geojson(
        tmp_path / "a.geojson", feature("Polygon", square, name), feature("Polygon", square, "Ignore*")
    )
    with open_truth(path, card, scale, (40, 40)) as truth:
        rows = np.concatenate([truth.read(top, 7) for top in range(0, 21, 7)])
    assert rows[1:6, 2:8].all()
    assert rows.sum() == 30
    write_geojson(path, feature("Polygon", square, "cartilage"))
    with pytest.raises(AnnotationError, match=rf"'cartilage', expected one of .*{card.class_names[1]}"):
        open_truth(path, card, scale, (40, 40))


def test_areas_beside_the_slide_are_refused(tmp_path: Path, open_model) -> None:
    slide = ArraySlide(np.zeros((40, 40, 3), np.uint8), 0.5)
    scale = plan_scale(slide, 0.5, tolerance=0.05)
    far = [[[900, 900], [990, 900], [990, 990]]]
    path = write_geojson(tmp_path / "a.geojson", feature("Polygon", far))
    with pytest.raises(TruthError, match="no area lies on the slide, 40x40"):
        open_truth(path, open_model("threshold").card, scale, (40, 40))
