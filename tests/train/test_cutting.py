from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from histoseg.demo import draw_slide, write_pyramid
from histoseg.errors import DataError, HistosegError
from histoseg_train.cutting import CutOptions, SlidePair, iter_patches, list_starts, pair_slides
from histoseg_train.patchset import split_slides
from histoseg_train.preprocess import dilate_labels

OPTIONS = CutOptions(("background", "nucleus"), ("#ffffff", "#00a000"), size=100, mpp=0.5)


@given(length=st.integers(1, 500), size=st.integers(16, 90), share=st.floats(0, 0.95))
def test_starts_cover_every_pixel_inside_the_slide(length: int, size: int, share: float) -> None:
    overlap = int(size * share)
    starts = list_starts(length, size, overlap)
    covered = np.zeros(length, int)
    for start in starts:
        assert start + size <= max(length, size)
        covered[start : start + size] += 1
    assert covered.min() > 0
    assert len(set(starts)) == len(starts)
    assert all(b - a <= size - overlap for a, b in pairwise(starts))


@given(slides=st.integers(2, 40), share=st.floats(0.01, 0.9), seed=st.integers(0, 9))
def test_at_least_one_slide_is_held_out_and_never_all(slides: int, share: float, seed: int) -> None:
    names = [f"s{index}" for index in range(slides)]
    kept = split_slides(names, share=share, seed=seed)
    assert 1 <= len(kept) < slides
    assert kept == split_slides(names[::-1], share=share, seed=seed)


def test_slides_are_held_out_by_name() -> None:
    assert split_slides(["a1", "a2", "b"], held_out=["a*"]) == {"a1", "a2"}
    assert split_slides(["a"], share=0) == set()
    for wrong in (["c"], ["*"]):
        with pytest.raises(DataError, match="--held-out"):
            split_slides(["a", "b"], held_out=wrong)
    with pytest.raises(DataError, match="one slide"):
        split_slides(["a"])


@pytest.fixture(scope="module")
def drawn() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return draw_slide(640, seed=4)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, drawn: tuple[NDArray[np.uint8], ...]) -> SlidePair:
    folder = tmp_path_factory.mktemp("slides")
    rgb, truth = drawn
    cv2.imwrite(str(folder / "a.png"), rgb[:500, :, ::-1])
    cv2.imwrite(str(folder / "truth.png"), truth[:500] * np.uint8(255))
    return SlidePair(folder / "a.png", folder / "truth.png")


@pytest.mark.parametrize("overlap", [0, 40])
def test_patches_are_the_slide_and_its_truth(
    pair: SlidePair, drawn: tuple[NDArray[np.uint8], ...], overlap: int
) -> None:
    rgb, truth = drawn
    seen = np.zeros((500, 640), int)
    for patch in iter_patches(pair, replace(OPTIONS, overlap=overlap, tissue=False)):
        name, x, y = patch.name.split("_")
        assert name == "a"
        place = np.s_[int(y) : int(y) + 100, int(x) : int(x) + 100]
        np.testing.assert_array_equal(patch.rgb, rgb[:500][place])
        np.testing.assert_array_equal(patch.labels, truth[:500][place])
        seen[place] += 1
    assert seen.min() == 1
    assert bool(seen.max() > 2) is (overlap > 0)


def test_patches_at_another_um_px(pair: SlidePair, drawn: tuple[NDArray[np.uint8], ...]) -> None:
    options = replace(OPTIONS, spacing_um_px=1.0, tissue=False)
    patches = {patch.name: patch for patch in iter_patches(pair, options)}
    assert set(patches) == {f"a_{x}_{y}" for x in (0, 200, 400, 440) for y in (0, 200, 300)}
    block = drawn[0][300:500, 440:640].reshape(100, 2, 100, 2, 3).mean(axis=(1, 3))
    assert np.abs(patches["a_440_300"].rgb - block).max() <= 0.5


def test_glass_is_left_out_and_annotations_are_not(pair: SlidePair, tmp_path: Path) -> None:
    rgb = np.full((1600, 1600, 3), 245, np.uint8)
    rgb[:640, :640] = draw_slide(640, seed=4)[0][..., ::-1]
    truth = np.zeros((1600, 1600), np.uint8)
    truth[1510:1520, 1510:1520] = 255
    cv2.imwrite(str(tmp_path / "b.png"), rgb)
    cv2.imwrite(str(tmp_path / "t.png"), truth)
    glassy = SlidePair(tmp_path / "b.png", tmp_path / "t.png")
    names = {patch.name for patch in iter_patches(glassy, OPTIONS)}
    corners = [tuple(map(int, name.split("_")[1:])) for name in names - {"b_1500_1500"}]
    assert "b_1500_1500" in names
    assert "b_300_300" in names
    assert all(x < 640 and y < 640 for x, y in corners)
    assert len(list(iter_patches(glassy, replace(OPTIONS, tissue=False)))) == 256


def test_a_slide_smaller_than_a_patch_is_one_patch(pair: SlidePair) -> None:
    patch, *rest = iter_patches(pair, replace(OPTIONS, size=1024))
    assert patch.rgb.shape == (500, 640, 3)
    assert not rest


def test_classes_grow_across_the_borders_of_patches(
    pair: SlidePair, drawn: tuple[NDArray[np.uint8], ...]
) -> None:
    options = replace(OPTIONS, dilate_um=2.0, tissue=False, size=640)
    (whole,) = iter_patches(pair, options)
    np.testing.assert_array_equal(whole.labels, dilate_labels(drawn[1][:500], 4.0))
    for patch in iter_patches(pair, replace(options, size=100)):
        x, y = map(int, patch.name.split("_")[1:])
        np.testing.assert_array_equal(patch.labels, whole.labels[y : y + 100, x : x + 100])


@pytest.mark.parametrize("suffix", [".geojson", ".svs.geojson"])
def test_a_slide_file_with_geojson(tmp_path: Path, suffix: str, drawn: tuple[NDArray[np.uint8], ...]) -> None:
    write_pyramid(tmp_path / "c.svs", np.ascontiguousarray(drawn[0][:512, :512]), 0.5)
    ring = [[10, 20], [110, 20], [110, 70], [10, 70], [10, 20]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "Nucleus"}},
    }
    (tmp_path / f"c{suffix}").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    pairs = pair_slides([tmp_path / "c.svs"], tmp_path)
    first = next(iter_patches(pairs[0], replace(OPTIONS, mpp=None, size=256)))
    expected = np.zeros((256, 256), np.uint8)
    expected[20:70, 10:110] = 1
    np.testing.assert_array_equal(first.labels, expected)


def test_real_tissue_with_imagescope_regions(shared_data: Path) -> None:
    folder, name = shared_data / "monuseg", "TCGA-21-5786-01Z-00-DX1"
    pairs = pair_slides([folder / "images" / f"{name}.png"], folder / "annotations")
    (patch,) = iter_patches(pairs[0], replace(OPTIONS, mpp=0.25, spacing_um_px=0.25, size=1000))
    mask = cv2.imread(str(folder / "masks" / f"{name}.png"), cv2.IMREAD_GRAYSCALE) > 0
    dice = 2 * (mask & (patch.labels > 0)).sum() / (mask.sum() + (patch.labels > 0).sum())
    assert dice > 0.95


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "found none"),
        (
            lambda folder: [(folder / f"a{suffix}").touch() for suffix in (".xml", ".json")],
            r"a\.json, a\.xml",
        ),
    ],
)
def test_slides_without_one_annotation_are_refused(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    (tmp_path / "a.svs").touch()
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        pair_slides([tmp_path / "a.svs"], tmp_path)
    with pytest.raises(DataError, match="expected a folder"):
        pair_slides([tmp_path / "a.svs"] * 2, tmp_path / "a.svs")


def test_masks_of_another_size_are_refused(pair: SlidePair, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "t.png"), np.zeros((77, 640), np.uint8))
    with pytest.raises(HistosegError, match="77"):
        next(iter_patches(replace(pair, truth=tmp_path / "t.png"), OPTIONS))
