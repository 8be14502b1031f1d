from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.errors import OutputError
from histoseg.outputs.overlay import Overlay, find_outline
from histoseg.slide import ArraySlide

COLORS = ("#ffffff", "#d98cb3", "#4b2e83")
GREEN = (0x00, 0xFF, 0x00)


def draw(
    path: Path, slide: ArraySlide, labels: np.ndarray, colors=COLORS, background: int = 0, rows: int = 50
) -> np.ndarray:
    overlay = Overlay(path, slide, (labels.shape[1], labels.shape[0]), colors, background)
    for top in range(0, len(labels), rows):
        overlay.add(top, labels[top : top + rows])
    overlay.close()
    return cv2.imread(str(path))[..., ::-1]


def gray_slide(height: int, width: int) -> ArraySlide:
    return ArraySlide(np.full((height, width, 3), 200, np.uint8), 0.5)


@given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_an_outline_is_the_pixels_that_touch_the_outside(region: np.ndarray) -> None:
    outline = find_outline(region.astype(np.uint8), 0)
    height, width = region.shape
    for y, x in np.ndindex(region.shape):
        near = [(y + dy, x + dx) for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))]
        inside = [(r, c) for r, c in near if 0 <= r < height and 0 <= c < width]
        assert outline[y, x] == (region[y, x] and not all(region[r, c] for r, c in inside))


def test_regions_get_their_outline_a_tint_and_nothing_else_changes(tmp_path: Path) -> None:
    labels = np.zeros((600, 800), np.uint8)
    labels[100:200, 300:500] = 1
    labels[400:500, 50:90] = 2
    picture = draw(tmp_path / "overlay.png", gray_slide(600, 800), labels)
    assert picture.shape == (600, 800, 3)
    assert (picture[labels == 0] == 200).all()
    for index, color in ((1, (0xD9, 0x8C, 0xB3)), (2, (0x4B, 0x2E, 0x83))):
        outline = find_outline((labels == index).astype(np.uint8), 0)
        assert (picture[outline] == color).all()
        inner = picture[(labels == index) & ~outline].astype(int)
        assert (inner == inner[0]).all()
        assert (np.abs(inner[0] - 200) < np.abs(np.array(color) - 200)).all()
        assert (inner[0] != 200).any()


def test_the_background_is_whatever_class_the_model_says(tmp_path: Path) -> None:
    labels = np.ones((600, 600), np.uint8)
    labels[100:200, 300:500] = 0
    picture = draw(tmp_path / "overlay.png", gray_slide(600, 600), labels, ("#00ff00", "#ffffff"), 1)
    assert (picture[labels == 1] == 200).all()
    assert (picture[find_outline(labels, 1)] == GREEN).all()


@pytest.mark.parametrize(("height", "width"), [(601, 3001), (30, 6500), (1, 1), (2, 1)])
def test_a_picture_has_a_size_a_person_can_look_at(tmp_path: Path, height: int, width: int) -> None:
    picture = draw(tmp_path / "overlay.png", gray_slide(height, width), np.zeros((height, width), np.uint8))
    assert 512 <= max(picture.shape) <= 3000
    assert (picture == 200).all()


def test_bands_of_any_height_draw_the_same_picture(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (90, 6500), dtype=np.uint8)
    slide = gray_slide(90, 6500)
    pictures = [draw(tmp_path / "overlay.png", slide, labels, rows=rows) for rows in (1, 7, 90)]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])


def test_a_region_lies_where_it_lies_on_the_slide(tmp_path: Path) -> None:
    """A dark square of a finer slide, marked: the outline surrounds it in the reduced picture."""
    rgb = np.full((3200, 6400, 3), 240, np.uint8)
    rgb[800:1600, 4000:5600] = 20
    labels = np.zeros((1600, 3200), np.uint8)
    labels[400:800, 2000:2800] = 1
    picture = draw(tmp_path / "overlay.png", ArraySlide(rgb, 0.25), labels, ("#ffffff", "#00ff00"))
    outline = np.argwhere((picture == GREEN).all(axis=-1))
    factor = 1600 / picture.shape[0]
    np.testing.assert_allclose(outline.min(axis=0) * factor, [400, 2000], atol=2)
    np.testing.assert_allclose((outline.max(axis=0) + 1) * factor, [800, 2800], atol=2)


def test_a_picture_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"overlay\.png"):
        draw(tmp_path / "missing" / "overlay.png", gray_slide(5, 5), np.zeros((5, 5), np.uint8))
