"""Colours of one image given to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg_train.augment import AugmentOptions
from histoseg_train.dataset import Item, list_items
from histoseg_train.images import SampleStore, decode_rgb
from histoseg_train.job import PatchOptions
from histoseg_train.looks import Look, change_look, measure_look
from histoseg_train.patches import PatchBatches

SEEDS = st.integers(0, 9999)


def draw_tissue(seed: int, *, side: int = 64) -> np.ndarray:
    """Return pixels whose optical densities are normal, of middling amounts, and far from black and white."""
    rng = np.random.default_rng(seed)
    mixing = 0.08 * np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3))
    density = rng.uniform(0.5, 0.9, 3) + rng.normal(size=(side, side, 3)).clip(-2, 2) @ mixing
    return np.clip(256 * np.exp(-density) - 1, 0, 255).astype(np.uint8)


def look_of(rgb: np.ndarray) -> Look:
    look = measure_look(rgb)
    assert look is not None
    return look


@settings(max_examples=40)
@given(seed=SEEDS)
def test_an_image_takes_on_the_look_of_another(seed: int) -> None:
    image, other = draw_tissue(seed), look_of(draw_tissue(seed + 1))
    found = look_of(change_look(image, look_of(image), other, share=1))
    np.testing.assert_allclose(found.mean, other.mean, atol=0.02)
    np.testing.assert_allclose(found.covariance, other.covariance, atol=0.004)


@settings(max_examples=40)
@given(seed=SEEDS, share=st.floats(0, 1))
def test_its_own_look_changes_nothing(seed: int, share: float) -> None:
    image, other = draw_tissue(seed), look_of(draw_tissue(seed + 1))
    own = look_of(image)
    for after, part in ((own, share), (other, 0.0)):
        changed = change_look(image, own, after, share=part)
        assert np.abs(changed.astype(int) - image).max() <= 1


@settings(max_examples=40)
@given(seed=SEEDS, share=st.floats(0.1, 1))
def test_there_and_back_is_the_same_image(seed: int, share: float) -> None:
    image, other = draw_tissue(seed), look_of(draw_tissue(seed + 1))
    there = change_look(image, look_of(image), other, share=share)
    back = change_look(there, look_of(there), look_of(image), share=1)
    # rounded twice, and what a narrow look squeezes is spread again
    assert np.abs(back.astype(int) - image).mean() < 4


def test_glass_has_no_look() -> None:
    glass = np.full((64, 64, 3), 245, np.uint8)
    assert measure_look(glass) is None
    glass[:10, :10] = 90
    assert measure_look(glass) is None, "too little tissue"


def test_nuclei_stay_darker_than_their_surroundings(shared_data: Path) -> None:
    item = "01_1"
    images = sorted((shared_data / "tnbc" / "images").glob(f"{item}.*"))
    rgb = decode_rgb(images[0])
    mask = decode_rgb(next((shared_data / "tnbc" / "masks").glob(f"{item}.*")))[..., 0] > 127
    looks = [measure_look(decode_rgb(path)) for path in sorted((shared_data / "ocdc" / "images").iterdir())]
    others = [look for look in looks if look is not None]
    assert len(others) > 5
    for other in others:
        changed = change_look(rgb, look_of(rgb), other, share=1)
        assert changed[mask].mean() < changed[~mask].mean() - 10


@pytest.fixture
def store(make_folder: Callable[..., Path]) -> SampleStore:
    return SampleStore(list_items(make_folder(3)).items, classes=2, spacing_um_px=0.5)


RESTAINED = AugmentOptions(scale=1, restain=1, stain=0, color=0, fold=0, blur=0, jpeg=0)


def test_patches_take_on_looks_and_keep_their_labels(store: SampleStore) -> None:
    options = PatchOptions(size=16, batch=4, steps=1, augment=RESTAINED)
    plain = replace(options, augment=RESTAINED.without_color())
    (changed, labels), (pixels, same) = (PatchBatches(store, o, "unit")[0] for o in (options, plain))
    assert np.abs(changed - pixels).max() > 0.02
    np.testing.assert_array_equal(labels[0], same[0])


def test_images_of_weight_zero_lend_their_looks_and_are_never_drawn(
    make_folder: Callable[..., Path],
) -> None:
    own = list_items(make_folder(2)).items
    lent: list[Item] = [
        replace(item, source="lent", mask=None, weight=0.0)
        for item in list_items(make_folder(2, name="lent", seed=1)).items
    ]
    store = SampleStore([*own, *lent], classes=2, spacing_um_px=0.5)
    batches = PatchBatches(store, PatchOptions(size=16, batch=2, steps=2, augment=RESTAINED), "unit")
    assert [len(looks) for looks in store.measure_looks()] == [2, 2]
    assert batches[0][0].shape == (2, 16, 16, 3)
    from histoseg_train.patches import item_chances

    assert item_chances(store.items).tolist() == [0.5, 0.5, 0, 0]
