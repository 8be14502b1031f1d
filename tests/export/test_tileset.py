"""Tiles with and without truth, from whatever a caller names."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from histoseg.errors import DataError, SlideError, SpacingError
from histoseg.truth import NO_CLASS
from histoseg_export.tileset import open_tile_set


@pytest.fixture(scope="module")
def card(open_model):
    """The card of a two-class model of 256 px tiles at 0.5 um/px."""
    found = open_model("unet").card
    shape = (None, 256, 256, 3)
    return replace(
        found, patch_size_pixels=(256, 256), spacing_um_px=0.5, input=replace(found.input, shape=shape)
    )


def test_folder_of_images_and_masks_has_truth(shared_data, card):
    found = open_tile_set(shared_data / "tnbc", card, 40, seed=1)
    assert found.tiles.shape == (40, 256, 256, 3)
    assert found.words == "tnbc: 33 images with masks"
    assert set(np.unique(found.truth)) == {0, 1}
    image = cv2.imread(str(next((shared_data / "tnbc" / "images").glob("01_1.*"))))[..., ::-1]
    place = next(index for index, tile in enumerate(found.tiles) if np.array_equal(tile, image))
    mask = cv2.imread(str(next((shared_data / "tnbc" / "masks").glob("01_1.*"))), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(found.truth[place], mask > 0)


def test_images_smaller_than_a_tile_are_unknown_outside(tmp_path, card):
    rng = np.random.default_rng(0)
    for name, shape in (("images", (100, 300, 3)), ("masks", (100, 300))):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), rng.integers(0, 2, shape, dtype=np.uint8))
    found = open_tile_set(tmp_path, card, 3, seed=0)
    assert (found.truth[:, 100:] == NO_CLASS).all()
    assert (found.truth[:, :100] != NO_CLASS).all()


def test_slide_gives_tissue_at_the_models_spacing(real_svs, card):
    found = open_tile_set(real_svs, card, 4, seed=2)
    assert found.truth is None
    assert found.tiles.shape == (4, 256, 256, 3)
    assert found.tiles.mean() < 225
    assert len({tile.tobytes() for tile in found.tiles}) == 4


@pytest.mark.parametrize("source", ["tnbc", "tnbc/images", "slides/cmu-1-small-region.svs"])
def test_the_seed_decides(source, shared_data, card):
    one, same, other = (open_tile_set(shared_data / source, card, 5, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one.tiles, same.tiles)
    assert not np.array_equal(one.tiles, other.tiles)


def test_a_plain_tiff_is_an_image(tmp_path, card):
    path = tmp_path / "a.tif"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    assert "a.tif" in open_tile_set(path, card, 2, seed=0).words


def test_the_demo_slide_serves_when_nothing_is_named(card):
    assert "demo slide" in open_tile_set(None, card, 2, seed=0).words


def test_what_cannot_be_cut_is_refused_in_one_line(shared_data, tmp_path, card):
    with pytest.raises(DataError, match="missing"):
        open_tile_set(tmp_path / "missing", card, 2, seed=0)
    with pytest.raises(DataError, match="holds no images"):
        open_tile_set(tmp_path, card, 2, seed=0)
    with pytest.raises(SpacingError, match="too coarse"):
        open_tile_set(shared_data / "slides" / "camelyon-jpeg.dcm", card, 2, seed=0)
    with pytest.raises(SlideError):
        open_tile_set(shared_data / "models" / "mvirgo-full_CNN_model.h5", card, 2, seed=0)
