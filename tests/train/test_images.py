from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg.errors import DataError
from histoseg_train.dataset import Item, MaskRule
from histoseg_train.images import SampleStore, count_pixels, read_sample, resample_labels, resample_rgb
from histoseg_train.maskfile import MaskReader

WriteItem = Callable[..., Item]


@pytest.fixture
def write_item(tmp_path: Path) -> WriteItem:
    def write(mask: np.ndarray, *, rule: MaskRule = MaskRule(), suffix: str = ".png", size: int = 8) -> Item:  # noqa: B008
        image, mask_path = tmp_path / "image.png", tmp_path / f"mask{suffix}"
        cv2.imwrite(str(image), np.full((size, size, 3), (10, 20, 30), np.uint8))
        cv2.imwrite(str(mask_path), mask)
        return Item("s", "x", image, mask_path, 0.5, rule, weight=1, held_out=False)

    return write


def gray(*values: int) -> np.ndarray:
    return np.resize(np.array(values, np.uint8), (8, 8))


def read(item: Item, classes: int = 2, spacing_um_px: float = 0.5) -> np.ndarray:
    return read_sample(item, MaskReader([item], classes=classes), spacing_um_px=spacing_um_px).labels


def test_channels_come_as_rgb(write_item: WriteItem) -> None:
    item = write_item(gray(0))
    sample = read_sample(item, MaskReader([item], classes=2), spacing_um_px=0.5)
    assert sample.rgb[0, 0].tolist() == [30, 20, 10]


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0,), (1,), (255,)])
def test_two_class_masks_are_indices_or_black_and_white(
    write_item: WriteItem, values: tuple[int, ...]
) -> None:
    np.testing.assert_array_equal(read(write_item(gray(*values))), gray(*values) > 0)


def test_three_equal_channels_are_one(write_item: WriteItem) -> None:
    mask = np.repeat(gray(0, 255)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read(write_item(mask)), gray(0, 1))


def test_a_value_map(write_item: WriteItem) -> None:
    rule = MaskRule(values=((0, 0), (1, 1), (2, 1)))
    np.testing.assert_array_equal(read(write_item(gray(0, 1, 2), rule=rule)), gray(0, 1, 2) > 0)


def test_a_threshold_reads_jpeg_masks(write_item: WriteItem) -> None:
    mask = np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((4, 4), np.uint8))
    np.testing.assert_array_equal(
        read(write_item(mask, rule=MaskRule(threshold=127), suffix=".jpg")), mask > 0
    )


@pytest.mark.parametrize(
    ("mask", "classes", "rule", "message"),
    [
        (gray(0, 3), 2, MaskRule(), "holds the values 0, 3, expected 0, 1"),
        (gray(*range(30)), 2, MaskRule(), "need a threshold"),
        (gray(0, 255), 3, MaskRule(), "expected 0, 1, 2 for 3 classes"),
        (gray(0, 5), 2, MaskRule(values=((0, 0), (1, 1))), "holds the values 0, 5"),
        (gray(0, 1), 2, MaskRule(values=((0, 0), (1, 2))), "for 2 classes"),
        (np.zeros((8, 9), np.uint8), 2, MaskRule(), "9x8 pixels, expected 8x8"),
        (np.full((8, 8), 300, np.uint16), 2, MaskRule(), "holds the values 300"),
        (np.full((8, 8, 3), (0, 0, 255), np.uint8), 2, MaskRule(), "colour mask"),
    ],
)
def test_wrong_masks_are_refused(
    write_item: WriteItem, mask: np.ndarray, classes: int, rule: MaskRule, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write_item(mask, rule=rule), classes=classes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x89PNG\r\n\x1a\n rubbish"])
def test_unreadable_pictures_are_refused(write_item: WriteItem, content: bytes) -> None:
    item = write_item(gray(0))
    item.image.write_bytes(content)
    with pytest.raises(DataError, match=r"image\.png"):
        read(item)


def test_spacing_scales_image_and_mask(write_item: WriteItem) -> None:
    item = write_item(gray(0))
    sample = read_sample(item, MaskReader([item], classes=2), spacing_um_px=1.0)
    assert sample.rgb.shape == (4, 4, 3)
    assert sample.labels.shape == (4, 4)


def test_masks_grow_by_um_at_any_spacing(write_item: WriteItem) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :2] = 1
    item = replace(write_item(mask), dilate_um=1.0)
    assert read(item).sum() == 8 * 4  # two pixels of 0.5 um
    assert read(item, spacing_um_px=1.0).sum() == 4 * 2  # one of 1 um


@settings(deadline=None, max_examples=30)
@given(factor=st.floats(0.2, 3), seed=st.integers(0, 99))
def test_resampling_keeps_constants_and_classes(factor: float, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (17, 23)).astype(np.uint8)
    scaled = resample_labels(labels, factor, classes=3)
    assert set(np.unique(scaled)) <= set(np.unique(labels))
    assert scaled.shape == resample_rgb(np.zeros((17, 23, 3), np.uint8), factor).shape[:2]
    assert np.all(resample_rgb(np.full((17, 23, 3), 77, np.uint8), factor) == 77)
    assert np.all(resample_labels(np.full((17, 23), 2, np.uint8), factor, classes=3) == 2)


def test_shrinking_takes_the_majority() -> None:
    labels = np.array([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1]], np.uint8)
    np.testing.assert_array_equal(resample_labels(labels, 0.5, classes=2), [[1, 0], [0, 1]])


def test_the_store_forgets_what_does_not_fit(write_item: WriteItem) -> None:
    item = write_item(gray(0, 1))
    kept = SampleStore([item], classes=2, spacing_um_px=0.5)
    assert kept[0].rgb is kept[0].rgb
    tight = SampleStore([item], classes=2, spacing_um_px=0.5, cache_bytes=10)
    assert tight[0].rgb is not tight[0].rgb
    np.testing.assert_array_equal(kept[0].labels, tight[0].labels)
    assert count_pixels(kept)[:3].tolist() == [32, 32, 0]
