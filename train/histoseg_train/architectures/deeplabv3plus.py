"""DeepLabV3+: DeepLabV3 with a decoder that sharpens its outlines.

Chen, Zhu, Papandreou, Schroff and Adam 2018, https://arxiv.org/abs/1802.02611.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from histoseg_train.architectures import deeplab
from histoseg_train.architectures.blocks import classify, conv_unit, enlarge, separable_unit
from histoseg_train.architectures.naming import format_name, number, word

_DECODER_STRIDE = 4


@dataclass(frozen=True)
class DeepLabV3PlusOptions:
    """The encoder and size of a DeepLabV3+."""

    encoder: str = word("resnet50", deeplab.CHOICES, shown=True)
    """A classifier's, or a plain one of an eighth of the width."""
    output_stride: int = number("o", 16, shown=True)
    """How much smaller than the image the coarsest features are: 16, or 8 for finer and slower."""
    width: int = number("w", 256)
    """Filters of the pyramid and the decoder."""

    def __post_init__(self) -> None:
        """Refuse options that make no network."""
        deeplab.check_options(self)

    @property
    def name(self) -> str:
        """Return the name that goes into the model card, such as `deeplabv3plus-resnet50-o16`."""
        return format_name("deeplabv3plus", self)

    @property
    def stride_multiple(self) -> int:
        """Return the number that height and width of the input must be multiples of."""
        return self.output_stride

    @property
    def skip_width(self) -> int:
        """Return the filters of the fine features, few beside the pyramid's: 48 beside 256 in the paper."""
        return max(1, self.width * 3 // 16)


def build_deeplabv3plus(
    input_shape: tuple[int | None, int | None, int],
    classes: int,
    *,
    options: DeepLabV3PlusOptions | None = None,
    weights: str | None = None,
) -> Any:
    """Build an uncompiled DeepLabV3+.

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

    options = options or DeepLabV3PlusOptions()
    stride = options.output_stride
    image = keras.Input(input_shape, name="image")
    features = deeplab.encode(image, options, weights)
    coarse = deeplab.pool_pyramid(features[-1], options.width, output_stride=stride, separable=True)
    decoded = _decode(coarse, features[1], options)
    logits = layers.Conv2D(classes, 1, name="head_logits")(decoded)
    probabilities = classify(enlarge(logits, _DECODER_STRIDE, "head_up"))
    return keras.Model(image, probabilities, name=options.name.replace("-", "_"))


def _decode(coarse: Any, fine: Any, options: DeepLabV3PlusOptions) -> Any:
    """Return features at stride 4 that know both what is there and where it ends."""
    from keras import layers

    raised = enlarge(coarse, options.output_stride // _DECODER_STRIDE, "dec_up")
    skip = conv_unit(fine, options.skip_width, "dec_skip", size=1)
    features = layers.Concatenate(name="dec_join")([raised, skip])
    for index in (1, 2):
        features = separable_unit(features, options.width, f"dec_{index}")
    return features
