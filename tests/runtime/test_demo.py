from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest

from histoseg.demo import draw_slide, write_demo_slide, write_pyramid
from histoseg.slide import open_slide


def test_the_same_seed_draws_the_same_slide() -> None:
    (rgb, truth), (again, truth_again), (other, _) = (
        draw_slide(256, 4),
        draw_slide(256, 4),
        draw_slide(256, 5),
    )
    np.testing.assert_array_equal(rgb, again)
    np.testing.assert_array_equal(truth, truth_again)
    assert (rgb != other).any()


def test_a_drawn_slide_looks_like_h_and_e() -> None:
    rgb, truth = draw_slide(1000, 7)
    assert rgb.shape == (1000, 1000, 3)
    assert rgb.dtype == truth.dtype == np.uint8
    assert set(np.unique(truth)) == {0, 1}
    assert 0.02 < truth.mean() < 0.4
    nuclei, rest = rgb[truth == 1].mean(axis=0), rgb[truth == 0].mean(axis=0)
    assert (nuclei < rest - 20).all()  # nuclei are dark
    assert nuclei[2] > nuclei[1]  # and more blue than green
    assert (rgb[:20, :20].mean(axis=(0, 1)) > 235).all()  # the corner is glass


def test_drawn_nuclei_have_the_size_of_nuclei() -> None:
    _, truth = draw_slide(1000, 7)
    _, _, stats, _ = cv2.connectedComponentsWithStats(truth)
    side = np.sqrt(stats[1:, cv2.CC_STAT_AREA])
    assert len(side) > 200
    assert 8 < np.median(side) < 24  # px at 0.5 um/px


@pytest.mark.parametrize("size", [64, 65, 100])
def test_the_smallest_slides_can_be_drawn(size: int) -> None:
    rgb, truth = draw_slide(size, 1)
    assert rgb.shape == (size, size, 3)
    assert truth.shape == (size, size)


def test_the_slide_and_its_truth_are_files_that_others_open(tmp_path: Path) -> None:
    slide_path, truth_path = write_demo_slide(tmp_path, size=1100, seed=3)
    rgb, truth = draw_slide(1100, 3)
    np.testing.assert_array_equal(cv2.imread(str(truth_path), cv2.IMREAD_UNCHANGED), truth * 255)
    with openslide.OpenSlide(str(slide_path)) as slide:
        assert slide.dimensions == (1100, 1100)
        assert slide.level_count == 3
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        pixels = np.asarray(slide.read_region((0, 0), 0, (1100, 1100)).convert("RGB"))
    assert np.abs(pixels.astype(int) - rgb).mean() < 4  # JPEG


def test_a_pyramid_of_odd_size_keeps_its_size_and_spacing(tmp_path: Path) -> None:
    rgb = np.full((515, 1031, 3), 128, np.uint8)
    write_pyramid(tmp_path / "odd.tif", rgb, 0.25)
    with open_slide(tmp_path / "odd.tif") as slide:
        assert slide.level_sizes == ((1031, 515), (516, 258), (258, 129))[: len(slide.level_sizes)]
        assert len(slide.level_sizes) > 1
        assert slide.spacing_um_px == pytest.approx((0.25, 0.25))


def test_the_demo_reaches_its_dice(
    default_model_until_present: Path, run_command: Callable, tmp_path: Path
) -> None:
    finished = run_command("histoseg-run", "--demo", "-o", tmp_path / "demo")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    folder = tmp_path / "demo" / "demo-slide"
    score = json.loads((folder / "report.json").read_text())["score"]
    dice = {entry["name"]: entry["dice"] for entry in score["classes"]}
    assert dice.pop(next(iter(dice)))  # background
    assert min(dice.values()) >= 0.80
    for shown in (
        f"{next(iter(dice.values())):.3f}",
        str(folder / "overlay.png"),
        str(folder / "labels.tif"),
    ):
        assert shown in finished.stdout
