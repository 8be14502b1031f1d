"""Tiles to prove on: of the right size, of tissue, the same every time."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from histoseg.errors import DataError
from histoseg_export import tiles
from histoseg_export.tiles import open_source, read_images


def test_the_demo_slide_repeats_and_holds_tissue():
    images, words = open_source(None, (96, 64))
    again, _ = open_source(None, (96, 64))
    assert np.array_equal(images, again)
    assert min(images[0].shape[:2]) >= 4 * 96
    assert "demo slide" in words
    assert images[0].std() > 20


def test_images_are_rgb_and_may_be_small(tmp_path):
    image = np.zeros((20, 30, 3), np.uint8)
    image[..., 0] = 200  # red
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    (tmp_path / "notes.txt").write_text("no image")
    images, words = open_source(tmp_path, (64, 64))
    assert words == f"{tmp_path.name}: 1 image"
    assert (images[0] == [200, 0, 0]).all()


def test_many_images_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "MAX_IMAGES", 3)
    for index in range(10):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((8, 8, 3), index, np.uint8))
    assert [int(image.flat[0]) for image in read_images(tmp_path)] == [0, 4, 8]


def test_folders_without_images_and_damaged_images(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        read_images(tmp_path)
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.png: cannot be read as an image"):
        read_images(tmp_path)
