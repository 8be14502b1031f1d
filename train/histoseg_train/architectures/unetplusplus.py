"""The U-Net++: skips that are convolved on their way, at every level from everything below.

Zhou, Siddiquee, Tajbakhsh and Liang 2018, https://arxiv.org/abs/1807.10165, without deep supervision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from histoseg_train.architectures.blocks import classify, conv_block, up_join
from histoseg_train.architectures.naming import check_size, format_name, number


@dataclass(frozen=True)
class UnetPlusPlusOptions:
    """The size of a U-Net++."""

    width: int = number("w", 16, shown=True)
    """Filters of the first level; each level below has twice as many."""
    depth: int = number("d", 4, shown=True)
    """Number of times the encoder halves the image."""

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        check_size(self.width, self.depth)

    @property
    def name(self) -> str:
        """Return the name that goes into the model card, such as `unetplusplus-w16-d4`."""
        return format_name("unetplusplus", self)

    @property
    def stride_multiple(self) -> int:
        """Return the number that height and width of the input must be multiples of."""
        return int(2**self.depth)


def build_unetplusplus(
    input_shape: tuple[int | None, int | None, int],
    classes: int,
    *,
    options: UnetPlusPlusOptions | None = None,
) -> Any:
    """Build an uncompiled U-Net++.

    Args:
        input_shape: `(height, width, channels)`; height and width may be `None`.
        classes: Number of output channels, two or more.
        options: The size of the network.

    Returns:
        A `keras.Model` from `float32` `(n, h, w, channels)`, already normalised, to `float32`
        `(n, h, w, classes)` probabilities; `h` and `w` are multiples of `options.stride_multiple`.
    """
    import keras
    from keras import layers

    options = options or UnetPlusPlusOptions()
    image = keras.Input(input_shape, name="image")
    rows: list[list[Any]] = []
    features = image
    for level in range(options.depth + 1):
        if level:
            features = layers.MaxPooling2D(2, name=f"x{level - 1}0_pool")(rows[level - 1][0])
        rows.append([conv_block(features, options.width * 2**level, f"x{level}0")])
        _fill_diagonal(rows, options.width)
    logits = layers.Conv2D(classes, 1, name="head_logits")(rows[0][-1])
    return keras.Model(image, classify(logits), name=options.name.replace("-", "_"))


def _fill_diagonal(rows: list[list[Any]], width: int) -> None:
    """Carry the newest level up: each row joins all it holds with what comes from the row below."""
    for level in reversed(range(len(rows) - 1)):
        filters = width * 2**level
        name = f"x{level}{len(rows[level])}"
        joined = up_join(rows[level + 1][-1], rows[level], filters, name)
        rows[level].append(conv_block(joined, filters, name))
