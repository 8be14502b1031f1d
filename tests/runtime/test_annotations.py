from __future__ import annotations

import dataclasses
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import histoseg.annotations
from histoseg.annotations import Region, load_regions
from histoseg.errors import AnnotationError, TruthError
from histoseg.outlines import Outlines
from histoseg.slide import ArraySlide, plan_scale
from histoseg.truth import open_truth

SQUARE = [[2, 1], [8, 1], [8, 6], [2, 6], [2, 1]]
HOLE = [[4, 3], [6, 3], [6, 5], [4, 5], [4, 3]]
XML_REGION = (
    '<Annotation Name="gland"><Regions><Region Type="0"><Vertices><Vertex X="1" Y="1"/>'
    '<Vertex X="9" Y="1"/><Vertex X="9" Y="9"/></Vertices></Region></Regions></Annotation>'
)


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


def fill(*regions: Region, shape: tuple[int, int] = (20, 20)) -> np.ndarray:
    values = [0 if region.erases else 1 for region in regions]
    return Outlines(regions, values, l0_per_m=(1, 1), m_size=(shape[1], shape[0])).read(0, shape[0])


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


def write_layers(path: Path, **layers: list[tuple[int, int, str]]) -> Path:
    """Write squares from one corner to another, negative ones marked by "1", as ImageScope does."""
    body = ""
    for name, squares in layers.items():
        body += f'<Annotation Name="{name}"><Regions>'
        for low, high, negative in squares:
            corners = [(low, low), (high, low), (high, high), (low, high)]
            vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in corners)
            body += f'<Region Type="1" NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'
        body += "</Regions></Annotation>"
    path.write_text(f"<Annotations>{body}</Annotations>")
    return path


@pytest.mark.parametrize("negative_first", [False, True])
def test_a_negative_region_shows_the_layer_below_wherever_it_stands(
    tmp_path: Path, open_model, negative_first: bool
) -> None:
    card = open_model("threshold").card
    card = dataclasses.replace(
        card,
        class_names=("background", "stroma", "tumor"),
        class_colors=("#000000", "#00ff00", "#ff0000"),
        output=dataclasses.replace(card.output, channels=3, threshold=None),
    )
    tumor = [(4, 16, "0"), (8, 12, "1")]
    path = write_layers(
        tmp_path / "a.xml", stroma=[(0, 18, "0")], tumor=tumor[::-1] if negative_first else tumor
    )
    scale = plan_scale(ArraySlide(np.zeros((20, 20, 3), np.uint8), 0.5), 0.5, tolerance=0.05)
    with open_truth(path, card, scale, (20, 20)) as truth:
        rows = truth.read(0, 20)
    expected = np.zeros((20, 20), np.uint8)
    for (low, high), value in {(0, 18): 1, (4, 16): 2, (8, 12): 1}.items():
        expected[low:high, low:high] = value
    np.testing.assert_array_equal(rows, expected)


AREA = feature("Polygon", [SQUARE], "Gland")
CORE = {**AREA, "properties": {"objectType": "tmaCore", "isMissing": False}}


@pytest.mark.parametrize(
    ("document", "names"),
    [
        (AREA, ["Gland"]),
        ([AREA, AREA], ["Gland", "Gland"]),
        ({"type": "FeatureCollection", "features": [AREA, AREA]}, ["Gland", "Gland"]),
        (AREA["geometry"], [None]),
        ({**AREA, "properties": None}, [None]),
        ({**AREA, "properties": {"classification": None}}, [None]),
        ({**AREA, "properties": {"classification": "Gland"}}, ["Gland"]),
        ({**AREA, "properties": {"classification": {"name": "Gland", "colorRGB": -16776961}}}, ["Gland"]),
        ({**AREA, "properties": {"classification": {"names": ["Gland", "Positive"]}}}, ["Gland: Positive"]),
        ({**AREA, "nucleusGeometry": AREA["geometry"]}, ["Gland"]),
        ({**AREA, "properties": {"isMissing": True}}, []),
        (CORE, [None]),
        ({**CORE, "properties": {**CORE["properties"], "childObjects": [AREA]}}, [None, "Gland"]),
        (feature("LineString", SQUARE, "Gland"), []),
        (feature("Point", [3, 4], "Gland"), []),
        ({**AREA, "geometry": None}, []),
        (feature("Polygon", []), []),
        (feature("Polygon", [[]]), []),
        (feature("MultiPolygon", [[], [SQUARE, HOLE]]), [None]),
        (feature("MultiPolygon", [[SQUARE], [HOLE]], "Gland"), ["Gland", "Gland"]),
    ],
)
def test_what_qupath_and_others_write(tmp_path: Path, document: Any, names: list[str | None]) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(document))
    if not names:
        with pytest.raises(AnnotationError, match="holds no area, expected Polygons"):
            load_regions(path)
        return
    regions = load_regions(path)
    assert [region.class_name for region in regions] == names
    assert all(fill(region).any() for region in regions)


def test_geometries_in_geometries_and_points_with_a_height(tmp_path: Path) -> None:
    nested: dict[str, Any] = {"type": "Polygon", "coordinates": [SQUARE, HOLE]}
    line = {"type": "LineString", "coordinates": SQUARE}
    for _ in range(3):
        nested = {"type": "GeometryCollection", "geometries": [line, nested]}
    with_z = [[x, y, 7.5] if x > 2 else [x, y] for x, y in SQUARE]
    plane = {"type": "Polygon", "coordinates": [with_z], "plane": {"c": -1, "z": 0, "t": 0}}
    path = write_geojson(
        tmp_path / "a.geojson",
        {"type": "Feature", "geometry": nested, "properties": {}},
        {"type": "Feature", "geometry": plane, "properties": {}},
    )
    first, second = load_regions(path)
    assert (fill(first).sum(), fill(second).sum()) == (6 * 5 - 2 * 2, 6 * 5)


@pytest.mark.parametrize(
    ("point", "said"),
    [
        (["4", "3"], "pairs of numbers"),
        ([4], "pairs of numbers"),
        ("43", "pairs of numbers"),
        ([None, 3], "pairs of numbers"),
        ([4, [3]], "pairs of numbers"),
        ([float("nan"), 3], "expected level-0 pixels"),
        ([float("inf"), 3], "expected level-0 pixels"),
        ([1e300, 3], "expected level-0 pixels"),
        (["4", "3", "0"], "pairs of numbers"),
    ],
)
def test_coordinates_that_are_no_pixels_are_refused(tmp_path: Path, point: Any, said: str) -> None:
    path = write_geojson(tmp_path / "a.geojson", feature("Polygon", [[*SQUARE, point]]))
    with pytest.raises(AnnotationError, match=said):
        load_regions(path)


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><Annotations>&c;',
        '<!DOCTYPE a [<!ENTITY c SYSTEM "file:///etc/hostname">]><Annotations>&c;',
        '<!DOCTYPE a [<!ENTITY % c SYSTEM "http://localhost:1/a.dtd"> %c;]><Annotations>',
        '<!DOCTYPE a [<!ENTITY c SYSTEM "picture.gif" NDATA gif>]><Annotations>',
    ],
)
def test_entities_of_every_kind_are_refused(tmp_path: Path, head: str) -> None:
    path = tmp_path / "bomb.xml"
    path.write_text(head + XML_REGION + "</Annotations>")
    with pytest.raises(AnnotationError, match="EntitiesForbidden"):
        load_regions(path)


def test_a_document_type_is_not_fetched(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(f'<!DOCTYPE a SYSTEM "http://localhost:1/a.dtd"><Annotations>{XML_REGION}</Annotations>')
    assert len(load_regions(path)) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.geojson", "{"),
        ("a.geojson", ""),
        ("a.geojson", "3"),
        ("a.geojson", '{"type": "Topology", "objects": {}}'),
        ("a.geojson", '{"type": "FeatureCollection", "features": []}'),
        ("a.geojson", '{"features": 3}'),
        ("a.geojson", '{"features": [3]}'),
        ("a.geojson", '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}]}'),
        ("a.geojson", '{"features": [{"geometry": {"type": "Polygon", "coordinates": 3}}]}'),
        ("a.geojson", '{"geometry": {"type": "Polygon", "coordinates": []}, "properties": 3}'),
        ("a.geojson", "[" * 100_000),
        ("a.geojson.gz", "not packed"),
        ("a.xml", ""),
        ("a.xml", "<Annotations>"),
        ("a.xml", "<Annotations/>"),
        ("a.xml", f"<Annotations>{XML_REGION.replace('9', '1,5')}</Annotations>"),
        ("a.xml", f"<Annotations>{XML_REGION.replace('9', 'nan')}</Annotations>"),
        ("a.xml", f"<Annotations>{XML_REGION.replace('Y', 'Z')}</Annotations>"),
    ],
)  # fmt: skip
def test_broken_files_are_refused_in_one_line(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(AnnotationError) as caught:
        load_regions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histoseg.annotations, "MAX_BYTES", 1 << 20)
    path = tmp_path / "a.geojson.gz"
    path.write_bytes(gzip.compress(b" " * (1 << 21)))
    with pytest.raises(AnnotationError, match="holds more than"):
        load_regions(path)


def test_areas_are_held_as_their_corners_alone(tmp_path: Path) -> None:
    """Lists of lists of Python numbers would take ten times as much."""
    corners = np.random.default_rng(0).integers(0, 9999, (2000, 50, 2)).tolist()
    path = write_geojson(tmp_path / "a.geojson", *(feature("Polygon", [ring], "Gland") for ring in corners))
    load_regions(write_geojson(tmp_path / "small.geojson", AREA))
    tracemalloc.start()
    try:
        regions = load_regions(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(regions) == 2000
    assert peak < 2 * path.stat().st_size + 2 * 2000 * 50 * 16


@pytest.fixture(scope="session")
def real_annotations(shared_data: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pixels inside MoNuSeg's annotations, and in its masks."""
    pairs = []
    for path in sorted((shared_data / "monuseg" / "annotations").glob("*.xml")):
        published = cv2.imread(str(shared_data / "monuseg" / "masks" / f"{path.stem}.png"), 0) > 127
        pairs.append((fill(*load_regions(path), shape=published.shape).astype(bool), published))
    return pairs


def test_real_annotations_equal_the_published_mask_inside_its_drawn_outline(real_annotations) -> None:
    """MoNuSeg's masks were filled outline included, so they hold a rim that pixel centres leave out."""
    assert len(real_annotations) == 13
    for rows, published in real_annotations:
        assert 2 * (rows & published).sum() / (rows.sum() + published.sum()) > 0.93
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


def test_cores_of_a_tissue_array_are_no_truth(tmp_path: Path, open_model) -> None:
    scale = plan_scale(ArraySlide(np.zeros((40, 40, 3), np.uint8), 0.5), 0.5, tolerance=0.05)
    core = feature("Polygon", [[[1, 1], [39, 1], [39, 39], [1, 39]]])
    core["properties"] = {"objectType": "tmaCore", "isMissing": False}
    path = write_geojson(tmp_path / "a.geojson", core, feature("Polygon", [SQUARE]))
    with open_truth(path, open_model("threshold").card, scale, (40, 40)) as truth:
        assert truth.read(0, 40).sum() == 6 * 5
    write_geojson(path, core)
    with pytest.raises(TruthError, match="no area lies on the slide"):
        open_truth(path, open_model("threshold").card, scale, (40, 40))


def test_later_areas_lie_over_earlier_ones_and_negative_ones_are_cut_out(tmp_path: Path, open_model) -> None:
    card = open_model("threshold").card
    scale = plan_scale(ArraySlide(np.zeros((20, 20, 3), np.uint8), 0.5), 0.5, tolerance=0.05)
    names = card.class_names
    path = write_geojson(
        tmp_path / "a.geojson", feature("Polygon", [SQUARE], names[1]), feature("Polygon", [HOLE], names[0])
    )
    with open_truth(path, card, scale, (20, 20)) as truth:
        assert truth.read(0, 20).sum() == 6 * 5 - 2 * 2
