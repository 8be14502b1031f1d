"""What masks of every coding mean, in folders of several."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from histoseg.errors import DataError
from histoseg_train.dataset import Item, MaskRule, list_items
from histoseg_train.images import SampleStore, count_pixels
from histoseg_train.maskfile import MaskReader
from histoseg_train.preprocess import dilate_labels

COLORS = ("#ffffff", "#00a000", "#d02040")
RGB = np.array([[255, 255, 255], [0, 160, 0], [208, 32, 64]], np.uint8)
BLOCKS = np.kron(np.array([[0, 1, 2], [2, 0, 1]], np.uint8), np.ones((16, 16), np.uint8))
BLACK_WHITE = (BLOCKS > 0) * np.uint8(255)

Write = Callable[..., list[Item]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write pictures as the masks of one source; arrays in RGB, or Pillow pictures."""

    def write(
        *masks: NDArray[np.uint8] | Image.Image, suffix: str = ".png", rule: MaskRule | None = None
    ) -> list[Item]:
        items = []
        for index, mask in enumerate(masks):
            path = tmp_path / f"mask{index}{suffix}"
            picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
            picture.save(path, **({"quality": 75} if suffix == ".jpg" else {}))
            items.append(
                Item("s", str(index), path, path, None, rule or MaskRule(), weight=1, held_out=False)
            )
        return items

    return write


def read(items: list[Item], classes: int = 3, *, index: int = 0) -> NDArray[np.uint8]:
    return MaskReader(items, classes=classes, colors=COLORS[:classes]).read(items[index])


def as_palette(labels: NDArray[np.uint8], colors: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(labels, "P")
    picture.putpalette(colors.tobytes())
    return picture


def test_class_colours_are_read_exactly(write: Write) -> None:
    np.testing.assert_array_equal(read(write(RGB[BLOCKS])), BLOCKS)


def test_a_colour_that_is_no_class_is_refused_with_its_place(write: Write) -> None:
    pixels = RGB[BLOCKS].copy()
    pixels[3, 5] = (1, 160, 0)
    with pytest.raises(DataError, match=r"#01a000 at pixel \(5, 3\), expected .*#00a000 \(class 1\)"):
        read(write(pixels))


def test_jpeg_colours_take_the_nearest_class(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        labels = read(write(RGB[BLOCKS], suffix=".jpg"))
    inside = np.s_[4:12, 4:12]
    np.testing.assert_array_equal(labels[inside], BLOCKS[inside])
    assert (labels == BLOCKS).mean() > 0.95
    assert "nearest class colour" in caplog.text


@pytest.mark.parametrize(
    "colors", [RGB, RGB[[1, 2, 0]], np.array([[9, 9, 9], [7, 0, 0], [0, 0, 5]], np.uint8)]
)
def test_palettes_of_indices_keep_their_indices(write: Write, colors: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(read(write(as_palette(BLOCKS, colors))), BLOCKS)


def test_palettes_of_class_colours_are_read_by_colour(write: Write) -> None:
    shifted = as_palette(BLOCKS + np.uint8(100), np.concatenate([np.zeros((100, 3), np.uint8), RGB]))
    np.testing.assert_array_equal(read(write(shifted)), BLOCKS)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_black_and_white_is_read_alike_in_every_format(write: Write, suffix: str) -> None:
    for mask in (BLACK_WHITE, np.repeat(BLACK_WHITE[..., None], 3, axis=2)):
        np.testing.assert_array_equal(read(write(mask, suffix=suffix), 2), BLOCKS > 0)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_white_is_what_the_other_masks_say(write: Write, suffix: str) -> None:
    white = np.full((32, 48, 3), 255, np.uint8)
    among_greys = write(white, np.repeat(BLACK_WHITE[..., None], 3, axis=2), suffix=suffix)
    assert np.all(read(among_greys, 2) == 1)
    among_colors = write(white, RGB[(BLOCKS > 0).astype(int)], suffix=suffix)
    assert np.all(read(among_colors, 2) == 0)
    assert np.all(read(write(white, white, suffix=suffix), 2) == 0)  # the background's colour


def test_smeared_masks_are_cut_with_one_note(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    shifted = np.roll(BLACK_WHITE, 3, axis=1)  # across the blocks of JPEG
    items = write(shifted, shifted, suffix=".jpg")
    reader = MaskReader(items, classes=2, colors=COLORS[:2])
    with caplog.at_level(logging.WARNING):
        for item in items:
            np.testing.assert_array_equal(reader.read(item), shifted > 0)
    assert len(caplog.records) == 1
    assert "cut at 128" in caplog.text


@pytest.mark.parametrize(
    ("mask", "suffix", "classes", "message"),
    [
        (BLOCKS, ".jpg", 3, "lossy picture, expected indices of 3 classes"),
        (np.full((32, 32, 3), 120, np.uint8), ".jpg", 2, "100% of it neither black nor white"),
        (np.full((32, 32), 120, np.uint8), ".jpg", 2, "100% of it neither black nor white"),
        (RGB[BLOCKS], ".png", 2, "#d02040"),
        (BLOCKS, ".png", 2, "holds the values 0, 1, 2, expected 0, 1, 255 .* name more classes"),
        (np.arange(64, dtype=np.uint8).reshape(8, 8), ".png", 2, "need a threshold"),
    ],
)
def test_masks_that_mean_nothing_are_refused(
    write: Write, mask: NDArray[np.uint8], suffix: str, classes: int, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write(mask, suffix=suffix), classes)
    assert "\n" not in str(caught.value)


def test_a_threshold_of_zero_makes_two_classes_of_numbered_objects(write: Write) -> None:
    rule = MaskRule(threshold=0)
    colored = np.array([[0, 0, 0], [3, 0, 0], [0, 0, 200]], np.uint8)[BLOCKS]
    for mask in (BLOCKS * np.uint8(40), colored):
        np.testing.assert_array_equal(read(write(mask, rule=rule), 2), BLOCKS > 0)


def test_without_class_colours_masks_in_colour_are_refused(write: Write) -> None:
    items = write(RGB[BLOCKS])
    with pytest.raises(DataError, match="colour mask"):
        MaskReader(items, classes=3).read(items[0])


def test_jpeg_masks_of_strangers_need_no_threshold(shared_data: Path) -> None:
    for name in ("ocdc", "dsb2018"):
        folder = shared_data / name
        items = sorted(list_items(folder).items, key=lambda item: item.stem)[:10]
        cut = [SampleStore([item], classes=2, spacing_um_px=1, colors=COLORS[:2])[0].labels for item in items]
        for item, labels in zip(items, cut, strict=True):
            np.testing.assert_array_equal(labels, cv2.imread(str(item.mask), cv2.IMREAD_GRAYSCALE) > 127)


def test_index_masks_of_strangers(shared_data: Path) -> None:
    items = list_items(shared_data / "nucls").items
    pixels = count_pixels(SampleStore(items, classes=3, spacing_um_px=1, colors=COLORS))
    assert np.all(pixels[:3] > 0)
    assert pixels.sum() == 10 * 256 * 256


@given(seed=st.integers(0, 99), radius=st.floats(1, 6))
def test_dilation_grows_each_class_by_its_radius(seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 40), np.uint8)
    points = rng.integers(0, 40, (5, 2))
    labels[points[:, 0], points[:, 1]] = rng.integers(1, 3, 5)
    y, x = np.mgrid[:40, :40]
    seeds = np.argwhere(labels)
    distance = np.array([np.hypot(y - sy, x - sx) for sy, sx in seeds])
    grown = dilate_labels(labels, radius)
    np.testing.assert_array_equal(grown[labels > 0], labels[labels > 0])
    # OpenCV's distances are right to a few percent
    assert np.all(grown[distance.min(axis=0) < radius * 0.95] > 0)
    assert np.all(grown[distance.min(axis=0) > radius * 1.05] == 0)
    first, second = np.sort(distance, axis=0)[:2]
    clear = (grown > 0) & (second - first > 0.1 * radius)
    nearest = labels[tuple(seeds[distance.argmin(axis=0)].transpose(2, 0, 1))]
    np.testing.assert_array_equal(grown[clear], nearest[clear])
