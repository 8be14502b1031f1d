"""Max pooling that remembers where the maxima were. Importing this module registers the layer with Keras."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

_LAST = {"data_format": "channels_last"}


@keras.saving.register_keras_serializable("histoseg")
class MaskedMaxPooling2D(keras.layers.Layer):
    """Pool 2x2 windows, and mark the first maximum of each, row by row.

    The mask holds what pooling indices hold, as Keras has none on every backend: multiplied by values that
    are repeated twice along each side, it puts them where the maxima were (Badrinarayanan, Kendall and
    Cipolla 2015, https://arxiv.org/abs/1511.00561). Among equal values the first one counts, as in
    `tf.nn.max_pool_with_argmax`.
    """

    def call(self, features: Any) -> tuple[Any, Any]:
        """Pool.

        Args:
            features: `(n, h, w, c)`; `h` and `w` are even.

        Returns:
            The maxima `(n, h / 2, w / 2, c)`, and a mask `(n, h, w, c)` of the same type: one at the first
            maximum of every window, zero elsewhere.
        """
        pooled = ops.max_pool(features, 2, 2, **_LAST)
        is_maximum = ops.cast(ops.equal(features, _repeat(pooled)), features.dtype)
        ranked = is_maximum * ops.cast(_rank_places(features), features.dtype)
        first = ops.equal(ranked, _repeat(ops.max_pool(ranked, 2, 2, **_LAST)))
        return pooled, ops.cast(first, features.dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, Any]:
        """Return the shapes of the maxima and of the mask."""
        count, height, width, channels = input_shape
        halves = (None if size is None else size // 2 for size in (height, width))
        return (count, *halves, channels), tuple(input_shape)


def _rank_places(features: Any) -> Any:
    """Return 4, 3, 2, 1 for the places of every window, `(h, w, 1)`: the first place ranks highest."""
    _, height, width, _ = ops.shape(features)
    rows, columns = ops.arange(height) % 2, ops.arange(width) % 2
    return (4 - 2 * rows[:, None] - columns)[..., None]


def _repeat(features: Any) -> Any:
    """Repeat rows and columns twice."""
    _, height, width, _ = features.shape
    if height is None or width is None:  # TensorFlow cannot resize to a size that it learns later
        return ops.repeat(ops.repeat(features, 2, axis=1), 2, axis=2)
    return ops.image.resize(features, (2 * height, 2 * width), interpolation="nearest", **_LAST)
