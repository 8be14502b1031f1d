from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histoseg_train.augment import AugmentOptions, draw_patch
from histoseg_train.dataset import Dataset, find_dataset, list_items
from histoseg_train.images import count_pixels
from histoseg_train.job import Target, open_store

RECIPES = Path(__file__).resolve().parents[2] / "train" / "recipes"
TARGET = Target(("background", "nucleus"), ("#ffffff", "#00a000"), 0.5)


@pytest.fixture(scope="module")
def nuclei(shared_data: Path) -> Dataset:
    return find_dataset(RECIPES / "nuclei.toml", root=shared_data)


def test_every_image_that_may_be_used_is_used_once(nuclei: Dataset, shared_data: Path) -> None:
    listed = (shared_data / "dsb2018" / "brightfield.txt").read_text().split()
    found = sorted(item.image.name for item in nuclei.items if item.source.startswith("dsb2018"))
    assert found == sorted(listed)
    assert sum(item.source == "tnbc" for item in nuclei.items) == 33
    assert sum(item.source == "nucls" for item in nuclei.items) == 10


def test_only_sources_whose_weights_may_be_shipped(nuclei: Dataset) -> None:
    assert {source["licence"] for source in nuclei.sources} == {"CC0", "CC BY 4.0"}
    assert not any("monuseg" in str(item.image) for item in nuclei.items)


def test_patients_are_held_out_whole(nuclei: Dataset) -> None:
    def patients(items: tuple) -> set[str]:
        return {item.stem[:2] for item in items if item.source == "tnbc"}

    assert len(patients(nuclei.held_out)) == 2
    assert not patients(nuclei.held_out) & patients(nuclei.training)
    assert {item.source for item in nuclei.held_out} == {item.source for item in nuclei.items}


def test_real_images_are_read_and_cut(nuclei: Dataset) -> None:
    store = open_store(nuclei.items, TARGET)
    pixels = count_pixels(store)
    assert 0.1 < pixels[1] / pixels.sum() < 0.3
    assert pixels[2:].sum() == 0
    for index in range(0, len(store), 20):
        patch = draw_patch(
            store[index], np.random.default_rng(0), size=64, foreground=1, options=AugmentOptions()
        )
        assert patch.rgb.shape == (64, 64, 3)


def test_monuseg_is_for_evaluation(shared_data: Path) -> None:
    dataset = list_items(RECIPES / "monuseg.toml", root=shared_data)
    assert len(dataset.held_out) == 30
    assert not dataset.training


def test_recipes_name_no_machine(shared_data: Path) -> None:
    for recipe in RECIPES.glob("*.toml"):
        assert str(shared_data.parent.parent) not in recipe.read_text()
