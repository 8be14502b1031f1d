from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from histoseg.errors import OutputError
from histoseg_train.job import Job, PatchOptions
from histoseg_train.preview import CAPTION_PX, GAP_PX, cut_tiles, write_preview

GREEN = (0, 160, 0)


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Job:
    return make_job(6, validation=0.5, patches=PatchOptions(size=40))


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1]


def is_green(pixels: np.ndarray) -> np.ndarray:
    return (pixels == GREEN).all(axis=-1)


def test_tiles_are_the_same_every_time_and_show_objects(job: Job) -> None:
    tiles, again = cut_tiles(job), cut_tiles(job)
    assert len(tiles) == 3
    for tile, other in zip(tiles, again, strict=True):
        np.testing.assert_array_equal(tile.rgb, other.rgb)
        assert tile.rgb.shape == (40, 40, 3)
        assert tile.labels.any()
    held_out = [job.held_out[index].rgb for index in range(3)]
    assert any((tiles[0].rgb[:5, :5] == rgb[y : y + 5, x : x + 5]).all()
               for rgb in held_out for y in range(60) for x in range(60))  # fmt: skip


def test_a_row_is_image_truth_and_prediction(job: Job, tmp_path: Path) -> None:
    tiles = cut_tiles(job, count=1)
    path = tmp_path / "p.png"
    write_preview(path, tiles, lambda rgb: np.zeros(rgb.shape[:2], np.uint8), job=job, epoch=1)
    sheet = read(path)
    assert sheet.shape == (CAPTION_PX + 40 + GAP_PX, 3 * (40 + GAP_PX), 3)
    image, truth, guess = (sheet[CAPTION_PX : CAPTION_PX + 40, x : x + 40] for x in (0, 44, 88))
    np.testing.assert_array_equal(image, tiles[0].rgb)
    np.testing.assert_array_equal(guess, image)
    assert is_green(truth).any()
    assert not is_green(truth)[tiles[0].labels == 0].any()
    write_preview(path, tiles, lambda _: tiles[0].labels, job=job, epoch=1)
    sheet = read(path)
    np.testing.assert_array_equal(sheet[CAPTION_PX:, 44:84], sheet[CAPTION_PX:, 88:128])
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["p.png"]


def test_a_folder_that_is_gone_is_one_error(job: Job, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write the preview"):
        write_preview(
            tmp_path / "gone" / "p.png", cut_tiles(job), lambda rgb: rgb[..., 0] * 0, job=job, epoch=1
        )
