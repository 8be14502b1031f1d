from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from histoseg.transform import NORMALIZATIONS
from histoseg_train.dataset import list_items
from histoseg_train.images import SampleStore
from histoseg_train.job import PatchOptions
from histoseg_train.patches import PatchBatches, item_chances

OPTIONS = PatchOptions(size=16, batch=3, steps=4)


@pytest.fixture
def store(make_folder: Callable[..., Path]) -> SampleStore:
    return SampleStore(list_items(make_folder(3)).items, classes=2, spacing_um_px=0.5)


def test_batches_have_one_shape_and_hold_classes(store: SampleStore) -> None:
    batches = PatchBatches(store, OPTIONS, "unit")
    assert len(batches) == 4
    pixels, labels = batches[0]
    assert pixels.shape == (3, 16, 16, 3)
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert labels.shape == (3, 16, 16)
    assert set(np.unique(labels)) <= {0, 1}


def test_a_batch_depends_on_seed_epoch_and_number_alone(store: SampleStore) -> None:
    first, second = PatchBatches(store, OPTIONS, "unit", seed=5), PatchBatches(store, OPTIONS, "unit", seed=5)
    _ = first[0], first[1]
    np.testing.assert_array_equal(first[2][0], second[2][0])
    assert not np.array_equal(second[2][0], second[3][0])
    assert not np.array_equal(second[2][0], PatchBatches(store, OPTIONS, "unit", seed=6)[2][0])
    before = second[2][0]
    second.on_epoch_end()
    assert not np.array_equal(second[2][0], before)


def test_normalisation_is_the_shared_one(store: SampleStore) -> None:
    unit = PatchBatches(store, OPTIONS, "unit")[0][0]
    symmetric = PatchBatches(store, OPTIONS, "symmetric")[0][0]
    np.testing.assert_allclose(symmetric, unit * 2 - 1, atol=1e-5)
    assert NORMALIZATIONS["unit"].scale == 1 / 255


def test_sources_are_drawn_by_weight(store: SampleStore) -> None:
    item = store.items[0]
    items = [replace(item, source="a", weight=3), *[replace(item, source="b", weight=1)] * 4]
    np.testing.assert_allclose(item_chances(items), [0.75, 0.0625, 0.0625, 0.0625, 0.0625])
