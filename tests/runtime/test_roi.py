from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histoseg.errors import RoiError
from histoseg.grid import plan_grid
from histoseg.job import segment_slide
from histoseg.options import RunOptions
from histoseg.roi import Roi, choose_tiles, open_roi
from histoseg.slide import ArraySlide, plan_scale


def scale_of(width: int, height: int):
    slide = ArraySlide(np.zeros((1, 1, 3), np.uint8), 0.5)
    return dataclasses.replace(plan_scale(slide, 0.5, tolerance=0.05), m_size=(width, height))


def write_polygons(path: Path, *polygons: list[list[float]]) -> Path:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
            "properties": {"classification": {"name": "whatever"}},
        }
        for ring in polygons
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return path


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    corner=st.tuples(st.integers(0, 199), st.integers(0, 199)),
    extent=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    crop=st.booleans(),
    factor=st.sampled_from([0, 1, 2, 3]),
)
def test_exactly_the_tiles_that_write_a_pixel_inside_run(
    tmp_path_factory, size, corner, extent, crop: bool, factor: int
) -> None:
    (width, height), (x0, y0) = size, (corner[0] % size[0], corner[1] % size[1])
    x1, y1 = min(width, x0 + extent[0]), min(height, y0 + extent[1])
    inside = np.zeros((height, width), bool)
    inside[y0:y1, x0:x1] = True
    folder = tmp_path_factory.mktemp("roi")
    if factor:  # a mask, finer than the model
        path = folder / "roi.png"
        assert cv2.imwrite(str(path), np.kron(inside, np.ones((factor, factor), np.uint8)) * np.uint8(7))
    else:
        path = write_polygons(folder / "roi.geojson", box(x0, y0, x1, y1))
    grid = plan_grid(size, (32, 32), overlap=12, halo=3, stride_multiple=2, crop=crop)
    with open_roi(path, scale_of(*size), size) as roi:
        runs = choose_tiles(grid, roi)
        np.testing.assert_array_equal(roi.read(0, height, 0, width), inside)
    for tile in grid.iter_tiles():
        left, top, right, bottom = tile.m_write
        assert runs[tile.row, tile.column] == inside[top:bottom, left:right].any()


def test_rows_of_a_mask_in_colour_are_inside_where_they_are_not_black(tmp_path: Path) -> None:
    rgb = np.zeros((40, 30, 3), np.uint8)
    rgb[10:20, 5:9] = (0, 0, 200)
    tifffile.imwrite(tmp_path / "roi.tif", rgb, photometric="rgb", tile=(16, 16))
    with open_roi(tmp_path / "roi.tif", scale_of(60, 80), (60, 80)) as roi:
        inside = np.kron(rgb.any(axis=-1), np.ones((2, 2), bool))
        np.testing.assert_array_equal(roi.read(0, 80, 0, 60), inside)
        np.testing.assert_array_equal(roi.read(19, 3, 0, 60), inside[19:22])


@pytest.mark.parametrize("kind", ["ids.tif", "ids.png", "palette.png", "bits.png", "colour.jpg", "grey.jpg"])
def test_every_value_of_a_mask_but_0_or_black_is_inside(tmp_path: Path, kind: str) -> None:
    inside = np.zeros((80, 60), bool)
    inside[16:48, 8:40] = True
    ids = inside * np.uint16(700)  # nuclei are numbered
    path = tmp_path / kind
    if kind == "ids.tif":
        tifffile.imwrite(path, ids)
    elif kind == "palette.png":
        picture = Image.fromarray(inside.astype(np.uint8), "P")
        picture.putpalette([255, 255, 0, 0, 0, 200])
        picture.save(path)
    else:
        drawn = {
            "ids.png": ids,
            "bits.png": inside,
            "colour.jpg": inside[..., None] * np.array([0, 0, 255], np.uint8),
            "grey.jpg": inside * np.uint8(255),
        }[kind]
        Image.fromarray(drawn).save(path)
    with open_roi(path, scale_of(60, 80), (60, 80)) as roi:
        np.testing.assert_array_equal(roi.read(0, 80, 0, 60), inside)


def test_negative_areas_are_cut_out_and_classes_do_not_matter(tmp_path: Path) -> None:
    def region(corners: list[list[float]], negative: int) -> str:
        vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in corners)
        return f'<Region Type="0" NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'

    body = region(box(10, 10, 40, 50), 0) + region(box(20, 20, 30, 30), 1)
    (tmp_path / "roi.xml").write_text(f'<A><Annotation Name="any"><Regions>{body}</Regions></Annotation></A>')
    inside = np.zeros((80, 60), bool)
    inside[10:50, 10:40] = True
    inside[20:30, 20:30] = False
    with open_roi(tmp_path / "roi.xml", scale_of(60, 80), (60, 80)) as roi:
        np.testing.assert_array_equal(roi.read(0, 80, 0, 60), inside)
        assert roi.m_box == (10, 10, 40, 50)


def test_rows_are_looked_at_once_and_only_around_the_areas(tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "roi.geojson", box(500, 700, 520, 1500))
    grid = plan_grid((4000, 4000), (256, 256), overlap=128, halo=16, stride_multiple=8)
    asked: list[int] = []

    with open_roi(path, scale_of(4000, 4000), (4000, 4000)) as roi:

        def read(m_y: int, count: int, m_x0: int, m_x1: int) -> np.ndarray:
            assert (m_x0, m_x1) == (500, 520)
            asked.extend(range(m_y, m_y + count))
            return roi.read(m_y, count, m_x0, m_x1)

        runs = choose_tiles(grid, Roi(path, roi.m_box, read))
        np.testing.assert_array_equal(runs, choose_tiles(grid, roi))
    assert asked == list(range(700, 1500))


@settings(max_examples=20)
@given(st.integers(1, 40_000), st.booleans())
def test_how_many_columns_are_looked_at_together_changes_no_tile(
    tmp_path_factory: pytest.TempPathFactory, scan_bytes: int, crop: bool
) -> None:
    inside = np.random.default_rng(scan_bytes).random((90, 200)) < 0.002
    path = tmp_path_factory.mktemp("roi") / "roi.tif"
    tifffile.imwrite(path, inside.astype(np.uint8), tile=(16, 16), compression="zlib")
    grid = plan_grid((200, 90), (32, 32), overlap=12, halo=3, stride_multiple=2, crop=crop)
    with open_roi(path, scale_of(200, 90), (200, 90)) as roi, pytest.MonkeyPatch.context() as patch:
        roi.footprint = dataclasses.replace(roi.footprint, reading_bytes=0)
        expected = choose_tiles(grid, roi)
        patch.setattr("histoseg.roi.SCAN_BYTES", max(scan_bytes, 80 * 4))
        np.testing.assert_array_equal(choose_tiles(grid, roi), expected)


def test_a_mask_that_is_damaged_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "roi.tif"
    tifffile.imwrite(path, np.ones((80, 60), np.uint8), rowsperstrip=40, compression="zlib")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        offset, length = tif.pages[0].dataoffsets[1], tif.pages[0].databytecounts[1]
    data[offset : offset + length] = b"\x77" * length
    path.write_bytes(data)
    with open_roi(path, scale_of(60, 80), (60, 80)) as roi:
        assert roi.read(0, 40, 0, 60).all()
        with pytest.raises(RoiError, match=r"roi\.tif: the region of interest is damaged"):
            roi.read(40, 40, 0, 60)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.png", "no such region of interest mask"),
        ("empty.geojson", "holds no area"),
        ("beside.geojson", "beside.geojson: no pixel of the slide lies inside, which is 60x80 px"),
        ("above.geojson", "above.geojson: no pixel of the slide lies inside, which is 60x80 px"),
        ("thin.geojson", "no pixel of the slide lies inside"),
        ("none.geojson", "holds no area"),
        ("black.png", "no pixel of the slide lies inside"),
        ("odd.png", "expected 60x80 px, or a whole multiple or fraction"),
        ("broken.geojson", "is no GeoJSON"),
    ],
)
def test_a_region_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, name: str, said: str) -> None:
    write_polygons(tmp_path / "empty.geojson")
    write_polygons(tmp_path / "beside.geojson", box(100, 100, 120, 130))
    write_polygons(tmp_path / "above.geojson", box(-40, -70, 12, -30))
    write_polygons(tmp_path / "thin.geojson", box(10.1, 10.1, 10.2, 70))
    (tmp_path / "none.geojson").write_text(
        '{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": []}, "properties": {}}'
    )
    (tmp_path / "broken.geojson").write_text("{", encoding="utf-8")
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((80, 60), np.uint8))
    cv2.imwrite(str(tmp_path / "odd.png"), np.ones((70, 60), np.uint8))
    grid = plan_grid((60, 80), (32, 32), overlap=12, halo=3, stride_multiple=2)
    with (
        pytest.raises(RoiError, match=said) as refusal,
        open_roi(tmp_path / name, scale_of(60, 80), (60, 80)) as roi,
    ):
        choose_tiles(grid, roi)
    assert "\n" not in str(refusal.value)


def test_outside_all_is_background_and_nothing_counts(open_model, small_slide: Path, tmp_path: Path) -> None:
    session, truth = open_model("threshold"), small_slide.with_name("truth.png")
    roi = write_polygons(tmp_path / "roi.geojson", box(100, 50, 300, 400), box(500, 500, 560, 600))
    everywhere = segment_slide(small_slide, session, tmp_path / "all", RunOptions(tissue=False), truth=truth)
    report = segment_slide(small_slide, session, tmp_path / "roi", truth=truth, roi=roi)
    whole, labels = (tifffile.imread(tmp_path / name / "small" / "labels.tif") for name in ("all", "roi"))
    inside = np.zeros(whole.shape, bool)
    inside[50:400, 100:300] = inside[500:600, 500:560] = True
    np.testing.assert_array_equal(labels, np.where(inside, whole, 0))
    assert [entry["pixels"] for entry in report["classes"]] == np.bincount(whole[inside]).tolist()
    expected = cv2.imread(str(truth), cv2.IMREAD_GRAYSCALE) > 0
    confusion = [
        [int((inside & (expected == t) & (whole == p)).sum()) for p in (0, 1)] for t in (False, True)
    ]
    assert report["score"]["confusion"] == confusion
    assert report["tissue"] is None
    assert 0 < report["tiles"]["run"] < everywhere["tiles"]["run"]
    assert report["options"]["roi"] == str(roi)


def test_a_region_runs_where_no_tissue_is(open_model, tmp_path: Path) -> None:
    glass = ArraySlide(np.full((300, 200, 3), 245, np.uint8), 0.5, "glass")
    roi = write_polygons(tmp_path / "roi.geojson", box(10, 10, 20, 20))
    assert segment_slide(glass, open_model("conv"), tmp_path / "a")["tiles"]["run"] == 0
    assert segment_slide(glass, open_model("conv"), tmp_path / "b", roi=roi)["tiles"]["run"] == 1


def test_the_command_line_takes_a_region(
    run_command, models: Path, small_slide: Path, tmp_path: Path
) -> None:
    roi = write_polygons(tmp_path / "roi.geojson", box(100, 50, 300, 400))
    words = (small_slide, "-m", models / "threshold.onnx", "-o", tmp_path / "out", "--provider", "cpu")
    done = run_command("histoseg-run", *words, "--roi", roi)
    assert done.returncode == 0, done.stderr
    bad = run_command("histoseg-run", *words, "--roi", tmp_path / "absent.png")
    assert bad.returncode == 1
    assert bad.stderr.count("\n") == 1
    assert "no such region of interest mask" in bad.stderr
    two = run_command("histoseg-run", *words, models / "conv.onnx", "--roi", roi)
    assert two.returncode == 2
