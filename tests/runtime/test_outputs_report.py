from __future__ import annotations

import copy
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from histoseg.card import ModelCard, card_to_text
from histoseg.errors import OutputError
from histoseg.job import segment_slide
from histoseg.outputs.report import Glance, write_report
from histoseg.outputs.report.charts import describe_thresholds, draw_thresholds
from histoseg.outputs.report.notes import find_notes
from histoseg.outputs.report.page import build_report, measure_slide
from histoseg.outputs.report.picture import LONG_SIDE_PX, encode_classes, encode_layer, encode_slide

GLANCE = Glance(
    np.full((40, 60, 3), 200, np.uint8),
    np.repeat([[0], [1]], 20, axis=0).repeat(60, axis=1).astype(np.uint8),
    np.full((40, 60), 255, np.uint8),
)
MASK = np.ones((4, 6), bool)


@pytest.fixture(scope="module")
def card(open_model) -> ModelCard:
    return open_model("threshold").card


@pytest.fixture(scope="module")
def found(open_model, small_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a run with a truth."""
    out = tmp_path_factory.mktemp("run")
    return segment_slide(small_slide, open_model("threshold"), out, truth=small_slide.with_name("truth.png"))


@pytest.fixture
def report(found: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(found)


class Tables(HTMLParser):
    """Collects rows of cells, and all text by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.text = ""
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        if name == "tr":
            self.rows.append([])
        elif name in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, name: str) -> None:
        self._in_cell = self._in_cell and name not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_a_layer_has_one_colour_and_is_as_opaque_as_its_class_covers(cover: np.ndarray) -> None:
    rgba = decode(encode_layer(cover, "#1b7f3b"))
    assert rgba.shape == (*cover.shape, 4)
    assert (rgba[..., :3] == (0x1B, 0x7F, 0x3B)).all()
    assert np.abs(rgba[..., 3].astype(int) - cover).max() <= 9
    assert (rgba[cover == 0, 3] == 0).all()
    assert (rgba[cover == 255, 3] == 255).all()


@given(hnp.arrays(np.uint8, (7, 9), elements=st.integers(0, 3)), st.integers(0, 3))
def test_every_class_that_is_there_has_a_layer_where_it_is(labels: np.ndarray, background: int) -> None:
    shares = np.where(labels == background, np.uint8(0), np.uint8(255))
    glance = Glance(np.zeros((7, 9, 3), np.uint8), labels, shares)
    layers = encode_classes(glance, ("#000000", "#ff0000", "#00ff00", "#0000ff"), background)
    assert set(layers) == set(np.unique(labels)) - {background}
    for index, png in layers.items():
        np.testing.assert_array_equal(decode(png)[..., 3] == 255, labels == index)


def test_a_large_picture_is_made_smaller_and_keeps_the_area_of_every_class() -> None:
    labels = np.zeros((1000, 3200), np.uint8)
    labels[:, ::4] = 1
    glance = Glance(np.full((500, 1500, 3), 200, np.uint8), labels, labels * np.uint8(255))
    assert Image.open(io.BytesIO(encode_slide(glance))).size == (LONG_SIDE_PX, 500)
    layer = decode(encode_classes(glance, ("#ffffff", "#ff0000"), 0)[1])
    assert layer.shape[:2] == (500, LONG_SIDE_PX)
    assert layer[..., 3].mean() / 255 == pytest.approx(0.25, abs=0.02)


def test_the_same_run_gives_the_same_page(report: dict[str, Any], card: ModelCard) -> None:
    first = build_report(report, card, GLANCE, MASK)
    assert build_report(json.loads(json.dumps(report)), card, GLANCE, MASK) == first


def test_the_tables_say_what_the_report_says(report: dict[str, Any], card: ModelCard) -> None:
    page = Tables(build_report(report, card, GLANCE, MASK))
    total = sum(entry["pixels"] for entry in report["classes"])
    for entry in report["classes"]:
        (row,) = [row for row in page.rows if row[0] == entry["name"] and len(row) == 4]
        assert float(row[1]) == pytest.approx(entry["area_mm2"], rel=5.1e-3)
        assert row[2] == f"{100 * entry['pixels'] / total:.2f}\u202f%"
    for entry in report["score"]["classes"]:
        (row,) = [row for row in page.rows if row[0] == entry["name"] and len(row) == 5]
        assert row[1:] == [f"{entry[key]:.3f}" for key in ("dice", "iou", "precision", "recall")]
    for entry in report["score"]["thresholds"]:
        assert [f"{entry['threshold']:.2f}", f"{entry['dice']:.3f}"] in [row[:2] for row in page.rows]
    for stage, seconds in report["seconds"].items():
        assert [stage.capitalize(), "", f"{seconds:.1f}\u202fs"] in page.rows
    for words in (report["model"]["sha256"], card_to_text(card), "Research use only", "Tissue mask"):
        assert words in page.text
    assert page.text.count("not present") == 0


def test_a_class_that_is_nowhere_has_no_score(report: dict[str, Any], card: ModelCard) -> None:
    for key in ("dice", "iou", "precision", "recall", "accuracy"):
        report["score"]["classes"][1][key] = None
    report["score"]["mean_dice"] = None
    for row in report["score"]["thresholds"]:
        row.update(dice=None, precision=None, recall=None)
    page = Tables(build_report(report, card, GLANCE, MASK))
    assert ["nucleus", *["not present"] * 4] in page.rows
    assert "Neither in the truth nor in the result, so without a score: nucleus." in find_notes(report)


def test_a_run_without_truth_and_tissue_mask_has_neither_section(
    report: dict[str, Any], card: ModelCard
) -> None:
    del report["score"]
    report["tissue"] = None
    page = build_report(report, card, GLANCE, None)
    assert not re.search(r'id="(scores|tissue|outside)"', page)
    assert 'id="seconds"' in page


def test_a_page_with_a_full_picture_of_tissue_stays_small(
    report: dict[str, Any], card: ModelCard, tmp_path: Path
) -> None:
    """A picture as busy as tissue at its most detailed, every third pixel of it a nucleus."""
    noise = np.random.default_rng(0)
    shape = (LONG_SIDE_PX // 4, LONG_SIDE_PX // 4)
    rgb = noise.normal((190, 120, 170), 25, (*shape, 3)).clip(0, 255).astype(np.uint8)
    rgb = rgb.repeat(4, axis=0).repeat(4, axis=1)
    labels = (noise.random(shape) < 0.3).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    write_report(tmp_path / "report.html", report, card, Glance(rgb, labels, labels * np.uint8(255)), MASK)
    assert (tmp_path / "report.html").stat().st_size < 1.5e6


def test_a_slide_of_one_pixel_has_a_page(report: dict[str, Any], card: ModelCard) -> None:
    one = Glance(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    report["slide"]["spacing_um_px"] = report["objects"] = None
    report["classes"] = [{**entry, "pixels": 0, "area_mm2": 0.0} for entry in report["classes"]]
    page = Tables(build_report(report, card, one, np.zeros((1, 1), bool)))
    assert ["nucleus", "0", "\u2013"] in page.rows


def test_a_page_that_cannot_be_written_is_an_output_error(
    report: dict[str, Any], card: ModelCard, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"missing/report\.html: cannot write the page"):
        write_report(tmp_path / "missing" / "report.html", report, card, GLANCE)


def test_the_slide_is_as_large_as_its_pixels_say(report: dict[str, Any]) -> None:
    assert measure_slide(report) == pytest.approx((350, 310))
    report["options"]["mpp"] = 0.25
    assert measure_slide(report) == pytest.approx((175, 155))
    report["options"]["mpp"], report["slide"]["spacing_um_px"] = None, [0.5, 0.25]
    assert measure_slide(report) == pytest.approx((350, 155))
    report["slide"]["spacing_um_px"] = None
    assert measure_slide(report) == pytest.approx((350, 310))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tiles": {"run": 0}}, "no tissue was found"),
        ({"tiles": {"run": 0}, "options": {"roi": "roi.png"}}, "region of interest touches none"),
        ({"tissue": {"note": "pen marks left out"}}, "Pen marks"),
        ({"placement": {"cpu": 57, "other": 3}}, "3 of 60 nodes"),
        ({"options": {"mpp": 0.25}}, "the slide states 0.5"),
        ({"options": {"mpp": 0.25}, "slide": {"spacing_um_px": None}}, "states none"),
        ({"options": {"allow_coarse": True}, "slide": {"spacing_um_px": [1.0, 1.0]}}, "was enlarged"),
        ({"slide": {"color_space": "sRGB"}}, "no colour profile"),
        ({"slide": {"gap_px": 1234}}, "1,234 pixels"),
    ],
)
def test_what_a_person_should_know_is_said(
    report: dict[str, Any], card: ModelCard, changes: dict[str, dict[str, Any]], words: str
) -> None:
    assert find_notes(report) == []
    assert 'class="card notes"' not in build_report(report, card, GLANCE, MASK)
    for key, change in changes.items():
        report[key] |= change
    (note,) = find_notes(report)
    assert words in note
    assert words in Tables(build_report(report, card, GLANCE, MASK)).text


def test_the_curve_goes_through_its_scores_and_breaks_where_there_are_none() -> None:
    rows = [
        {"threshold": 0.2, "dice": 0.5, "precision": 0.25, "recall": 1.0},
        {"threshold": 0.4, "dice": 0.75, "precision": None, "recall": 1.0},
        {"threshold": 0.8, "dice": 0.6, "precision": 1.0, "recall": 0.4},
    ]
    chart = draw_thresholds(rows, 0.4, "<nucleus>")
    lines = re.findall(r'points="([^"]+)"', chart)
    dice = np.array([point.split(",") for point in lines[0].split()], float)
    assert len(lines) == 4
    assert (dice[1, 0] - dice[0, 0]) * 2 == pytest.approx(dice[2, 0] - dice[1, 0], abs=0.2)
    assert np.argmin(dice[:, 1]) == 1
    assert "&lt;nucleus&gt;" in chart
    assert describe_thresholds(rows, 0.5) == "Dice is best, 0.750, at 0.40; this run used 0.50."
    assert "neither" in describe_thresholds([{**rows[0], "dice": None}], 0.5)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=3, max_size=3))
def test_no_curve_leaves_its_plot(scores: list[float | None]) -> None:
    row = {"threshold": 0.5, **dict(zip(("dice", "precision", "recall"), scores, strict=True))}
    for point in re.findall(r'points="([^"]+)"', draw_thresholds([row], 0.5, "nucleus")):
        x, y = map(float, point.split(","))
        assert 40 <= x <= 428
        assert 12 <= y <= 208.1
