from __future__ import annotations

import gzip
import json
import re
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.annotations import load_regions
from histoseg.card import InputSpec, ModelCard, OutputSpec, Tiling
from histoseg.errors import OutputError
from histoseg.outputs.objects import Objects
from histoseg.scale import Scale
from histoseg.slide import open_slide
from histoseg.truth import open_truth

NAMES = ("background", "tumour", 'stroma "loose"', "Bindegewebe, Ödem")
COLORS = ("#ffffff", "#d98cb3", "#4b2e83", "#00ff7f")
CARD = ModelCard(
    architecture="unet",
    class_names=NAMES,
    class_colors=COLORS,
    spacing_um_px=0.5,
    patch_size_pixels=(64, 64),
    input=InputSpec("input", "NHWC", "uint8", "RGB", (None, 64, 64, 3)),
    output=OutputSpec("output", "NHWC", "softmax", 4),
    tiling=Tiling(16, 8, 16),
    precision="fp32",
)


def plan(width: int, height: int, l0_per_m: tuple[float, float] = (1.0, 1.0)) -> Scale:
    return Scale(0, l0_per_m, l0_per_m, (width, height), (0.5, 0.25))


def write(
    path: Path,
    labels: np.ndarray,
    *,
    scale: Scale | None = None,
    card: ModelCard = CARD,
    rows: int = 5,
    name: str = "slide",
    **options: Any,
) -> dict[str, Any]:
    """Write labels in bands of `rows`; return the report."""
    scale = scale or plan(labels.shape[1], labels.shape[0])
    with Objects(path, name, scale, card, **options) as objects:
        for top in range(0, len(labels), rows):
            objects.add(top, labels[top : top + rows])
        objects.close()
        return objects.report()


def read(path: Path) -> list[dict[str, Any]]:
    document = json.loads(gzip.decompress(path.read_bytes()))
    assert document["type"] == "FeatureCollection"
    return list(document["features"])


def disks(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return labels with round objects of many sizes, some with a hole."""
    rng, labels = np.random.default_rng(seed), np.zeros((height, width), np.uint8)
    for _ in range(height * width // 300):
        center, radius = rng.integers(0, (width, height)).tolist(), int(rng.integers(1, 9))
        cv2.circle(labels, center, radius, int(rng.integers(1, 4)), -1)
        if radius > 6:
            cv2.circle(labels, center, 2, 0, -1)
    return labels


@settings(max_examples=60)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.integers(0, 3)),
    st.tuples(st.floats(0.6, 40), st.floats(0.6, 40)),
    st.integers(0, 3),
)
def test_the_package_reads_its_own_objects_back_as_truth(
    tmp_path_factory: pytest.TempPathFactory,
    labels: np.ndarray,
    l0_per_m: tuple[float, float],
    background: int,
) -> None:
    path = tmp_path_factory.mktemp("objects") / "objects.geojson.gz"
    card, scale = replace(CARD, background_index=background), plan(*labels.shape[::-1], l0_per_m)
    write(path, labels, card=card, scale=scale, simplify=False)
    if (labels == background).all():
        assert read(path) == []
        return
    l0_size = tuple(round(m * l0) for m, l0 in zip(scale.m_size, l0_per_m, strict=True))
    with open_truth(path, card, scale, l0_size) as truth:
        np.testing.assert_array_equal(truth.read(0, len(labels)), labels)


def test_a_real_slide_comes_back(tmp_path: Path, real_svs: Path) -> None:
    with open_slide(real_svs) as slide:
        width, height = slide.level_sizes[0]
        rgb = slide.read_level(0, 0, 0, width, height)
    gray = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (0, 0), 4)
    labels = np.digitize(gray, [110, 150, 200]).astype(np.uint8)
    card, path = replace(CARD, background_index=3), tmp_path / "objects.geojson.gz"
    report = write(path, labels, card=card, rows=64, simplify=False)
    assert report["count"] > 1000
    with open_truth(path, card, plan(width, height), (width, height)) as truth:
        np.testing.assert_array_equal(truth.read(0, height), labels)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.tuples(st.floats(0.95, 40), st.floats(0.95, 40)))
def test_simplified_objects_are_valid_in_level_0_pixels(
    tmp_path_factory: pytest.TempPathFactory, seed: int, l0_per_m: tuple[float, float]
) -> None:
    path, labels = tmp_path_factory.mktemp("objects") / "objects.geojson.gz", disks(120, 90, seed)
    report = write(path, labels, scale=plan(90, 120, l0_per_m))
    features = read(path)
    assert len(features) == report["count"]
    for feature in features:
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert shape.exterior.is_ccw


def test_a_feature_says_what_qupath_asks_for(tmp_path: Path) -> None:
    labels = np.zeros((8, 9), np.uint8)
    labels[2:6, 3:7] = 3
    labels[3, 4] = 0
    report = write(tmp_path / "o.geojson.gz", labels, scale=plan(9, 8, (1.01, 2.5)), simplify=False)
    (feature,) = read(tmp_path / "o.geojson.gz")
    assert feature["type"] == "Feature"
    namespace = uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_DNS, "histoseg"), "slide")
    assert feature["id"] == str(uuid.uuid5(namespace, "3/6/4"))  # class, and corner in halves of a pixel
    assert feature["properties"] == {
        "objectType": "detection",
        "classification": {"name": NAMES[3], "color": [0, 255, 127]},
        "measurements": {"Area um^2": 1.875},
    }
    assert feature["geometry"] == {
        "type": "Polygon",
        "coordinates": [
            [[3.03, 5], [7.07, 5], [7.07, 15], [3.03, 15], [3.03, 5]],
            [[4.04, 7.5], [4.04, 10], [5.05, 10], [5.05, 7.5], [4.04, 7.5]],
        ],
    }
    assert report["count"] == 1
    assert report["vertices"] == 8
    assert {"name": NAMES[3], "count": 1} in report["classes"]
    assert NAMES[0] not in [entry["name"] for entry in report["classes"]]
    assert report["note"] is None


def test_numbers_have_at_most_two_decimals_and_no_trailing_zeros(tmp_path: Path) -> None:
    write(tmp_path / "o.geojson.gz", disks(200, 150), scale=plan(150, 200, (1.0037, 2.0)))
    text = gzip.decompress((tmp_path / "o.geojson.gz").read_bytes()).decode()
    numbers = re.findall(r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?", ",".join(re.findall(r"\[\[\[.*?\]\]\]", text)))
    assert len(numbers) > 1000
    assert all(re.fullmatch(r"(0|[1-9]\d*)(\.\d?[1-9])?", number) for number in numbers)


def test_a_class_keeps_its_name_through_the_importer(tmp_path: Path) -> None:
    labels = np.array([[1, 2, 3]], np.uint8)
    write(tmp_path / "o.geojson.gz", labels)
    assert {region.class_name for region in load_regions(tmp_path / "o.geojson.gz")} == set(NAMES[1:])


def test_a_rerun_gives_the_same_bytes_whatever_the_bands(tmp_path: Path) -> None:
    labels = disks(300, 2000)
    data = []
    for index, rows in enumerate((300, 64, 7)):
        write(tmp_path / f"{index}.geojson.gz", labels, rows=rows)
        data.append((tmp_path / f"{index}.geojson.gz").read_bytes())
    assert data[0] == data[1] == data[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i}.geojson.gz" for i in range(3)]


def test_ids_differ_between_objects_and_slides_and_stay_when_simplified(tmp_path: Path) -> None:
    labels = disks(150, 150)
    ids = {}
    for key, options in {"a": {}, "exact": {"simplify": False}, "b": {"name": "other"}}.items():
        write(tmp_path / "o.geojson.gz", labels, **options)
        ids[key] = [feature["id"] for feature in read(tmp_path / "o.geojson.gz")]
    assert len(set(ids["a"])) == len(ids["a"])
    assert ids["a"] == ids["exact"]
    assert not set(ids["a"]) & set(ids["b"])


def test_small_objects_are_left_out_and_counted(tmp_path: Path) -> None:
    labels = disks(150, 150)
    areas = {
        feature["id"]: feature["properties"]["measurements"]["Area um^2"]
        for _ in [write(tmp_path / "o.geojson.gz", labels)]
        for feature in read(tmp_path / "o.geojson.gz")
    }
    report = write(tmp_path / "o.geojson.gz", labels, min_area_um2=10)
    kept = {feature["id"] for feature in read(tmp_path / "o.geojson.gz")}
    assert kept == {key for key, area in areas.items() if area >= 10}
    assert 0 < len(kept) < len(areas)
    assert report["left_out"]["under_min_area"] == len(areas) - len(kept)
    assert report["note"] is None


def test_of_too_many_vertices_the_largest_objects_stay(tmp_path: Path) -> None:
    labels = disks(260, 300)
    labels[:60] = np.indices((60, 300)).sum(axis=0) % 2
    labels[:60:2] = 1  # one comb that has more corners than may be written
    whole = write(tmp_path / "all.geojson.gz", labels)
    report = write(tmp_path / "o.geojson.gz", labels, max_vertices=1500)
    features = read(tmp_path / "o.geojson.gz")
    assert report["vertices"] <= 1500 < whole["vertices"]
    assert report["vertices"] > 1000
    assert report["left_out"]["over_max_vertices"] == whole["count"] - len(features)
    assert f"{whole['vertices']:,}" in report["note"]
    assert "--min-area-um2" in report["note"]
    kept = {feature["id"] for feature in features}
    areas = [
        (feature["properties"]["measurements"]["Area um^2"], feature["id"] in kept)
        for feature in read(tmp_path / "all.geojson.gz")
    ]
    least = min(area for area, stays in areas if stays)
    # within one step of area, all go or all stay; only what does not fit alone is larger
    assert max(area for area, stays in areas if not stays and area < 1000) <= least


def test_a_file_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "o.geojson.gz").mkdir()
    with pytest.raises(OutputError, match=r"o\.geojson\.gz"):
        write(tmp_path / "o.geojson.gz", disks(20, 20))
    assert [path.name for path in tmp_path.iterdir()] == ["o.geojson.gz"]
