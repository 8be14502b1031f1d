"""DeepLabV3: atrous convolutions and a spatial pyramid, then straight to the image's size.

Chen, Papandreou, Schroff and Adam 2017, https://arxiv.org/abs/1706.05587.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from histoseg_train.architectures import deeplab
from histoseg_train.architectures.blocks import classify, enlarge
from histoseg_train.architectures.naming import format_name, number, word


@dataclass(frozen=True)
class DeepLabV3Options:
    """The encoder and size of a DeepLabV3."""

    encoder: str = word("resnet50", deeplab.CHOICES, shown=True)
    """A classifier's, or a plain one of an eighth of the width."""
    output_stride: int = number("o", 16, shown=True)
    """How much smaller than the image the coarsest features are: 16, or 8 for finer and slower."""
    width: int = number("w", 256)
    """Filters of the pyramid."""

    def __post_init__(self) -> None:
        """Refuse options that make no network."""
        deeplab.check_options(self)

    @property
    def name(self) -> str:
        """Return the name that goes into the model card, such as `deeplabv3-resnet50-o16`."""
        return format_name("deeplabv3", self)

    @property
    def stride_multiple(self) -> int:
        """Return the number that height and width of the input must be multiples of."""
        return self.output_stride


def build_deeplabv3(
    input_shape: tuple[int | None, int | None, int],
    classes: int,
    *,
    options: DeepLabV3Options | None = None,
    weights: str | None = None,
) -> Any:
    """Build an uncompiled DeepLabV3.

    Args:
        input_shape: `(height, width, channels)`; height and width may be `None`.
        classes: Number of output channels, two or more.
        options: The encoder and the size of the network.
        weights: Of the encoder, as for `build_features`; a plain encoder has none.

    Returns:
        A `keras.Model` from `float32` `(n, h, w, channels)`, already normalised, to `float32`
        `(n, h, w, classes)` probabilities; `h` and `w` are multiples of `options.stride_multiple`.

    Raises:
        ModelError: The weights cannot be had, or do not fit.
    """
    import keras
    from keras import layers

    options = options or DeepLabV3Options()
    stride = options.output_stride
    image = keras.Input(input_shape, name="image")
    features = deeplab.encode(image, options, weights)[-1]
    features = deeplab.pool_pyramid(features, options.width, output_stride=stride, separable=False)
    logits = layers.Conv2D(classes, 1, name="head_logits")(features)
    probabilities = classify(enlarge(logits, stride, "head_up"))
    return keras.Model(image, probabilities, name=options.name.replace("-", "_"))
