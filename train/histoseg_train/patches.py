"""Batches of random patches for `keras.Model.fit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from histoseg.transform import NORMALIZATIONS, Normalization, apply_transform
from histoseg_train.augment import draw_patch
from histoseg_train.dataset import Item
from histoseg_train.images import Sample, SampleStore
from histoseg_train.job import PatchOptions


class PatchBatches(keras.utils.PyDataset):
    """Batches of `float32` `(n, size, size, 3)` patches and `uint8` `(n, size, size)` class indices.

    Where teachers say what patches show, `float32` `(n, size, size, classes)` soft labels take the
    indices' place.

    A batch depends on the seed, the epoch and its own number alone, so that threads cannot reorder chance.
    """

    def __init__(
        self,
        store: SampleStore,
        options: PatchOptions,
        normalization: Normalization,
        *,
        seed: int = 0,
        first_epoch: int = 0,
        workers: int = 1,
    ) -> None:
        super().__init__(workers=workers)
        self._store = store
        self._options = options
        self._steps = [NORMALIZATIONS[normalization]]
        self._seed = seed
        self._chances = item_chances(store.items)
        self._looks = store.measure_looks() if options.augment.restain else ()
        self._epoch = first_epoch

    def __len__(self) -> int:
        return self._options.steps

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return batch `index` of the current epoch."""
        options = self._options
        rng = np.random.default_rng((self._seed, self._epoch, index))
        chosen = rng.choice(len(self._store), size=options.batch, p=self._chances)
        patches = [
            draw_patch(
                self._store[i],
                rng,
                size=options.size,
                foreground=options.foreground,
                options=options.augment,
                looks=self._looks,
            )
            for i in chosen
        ]
        rgb = np.stack([patch.rgb for patch in patches])
        return apply_transform(rgb, self._steps), _stack_truth(patches)

    def on_epoch_end(self) -> None:
        """Let the next epoch draw other patches."""
        self._epoch += 1


def _stack_truth(patches: Sequence[Sample]) -> NDArray[Any]:
    taught = [patch.soft_labels for patch in patches if patch.soft_labels is not None]
    if not taught:
        return np.stack([patch.labels for patch in patches])
    soft = np.moveaxis(np.stack(taught), 1, -1).astype(np.float32)
    # those of a pixel add up to about 255: they were rounded, and again when warped
    return soft / np.maximum(soft.sum(axis=-1, keepdims=True), 1)


def item_chances(items: Sequence[Item]) -> NDArray[np.float64]:
    """Return the chance of drawing each item: sources by their weight, items of one source alike."""
    sources = np.array([item.source for item in items])
    weights = np.array([item.weight for item in items], np.float64)
    for source in np.unique(sources):
        weights[sources == source] /= np.count_nonzero(sources == source)
    return weights / weights.sum()
