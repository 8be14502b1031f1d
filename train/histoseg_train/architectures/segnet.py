"""The SegNet: a decoder that puts features back where the encoder's maxima were.

Badrinarayanan, Kendall and Cipolla 2015, https://arxiv.org/abs/1511.00561: the thirteen convolutions of VGG16
with batch normalisation, and their mirror image. Fewer levels or filters make the small ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from histoseg_train.architectures.blocks import classify, conv_block
from histoseg_train.architectures.encoders import load_vgg_weights
from histoseg_train.architectures.naming import check_size, format_name, number

# of VGG16, finest level first
CONVOLUTIONS = (2, 2, 3, 3, 3)
_WIDEST = 8


@dataclass(frozen=True)
class SegnetOptions:
    """The size of a SegNet; the default is the paper's."""

    width: int = number("w", 64, shown=True)
    """Filters of the first level; each level below has twice as many, up to eight times."""
    depth: int = number("d", 5, shown=True)
    """Number of times the encoder halves the image."""

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        check_size(self.width, self.depth, most_levels=len(CONVOLUTIONS), cap=_WIDEST * self.width)

    @property
    def name(self) -> str:
        """Return the name that goes into the model card, such as `segnet-w64-d5`."""
        return format_name("segnet", self)

    @property
    def stride_multiple(self) -> int:
        """Return the number that height and width of the input must be multiples of."""
        return int(2**self.depth)

    def filters(self, level: int) -> int:
        """Return the filters at `level`, 0 being the first."""
        return int(self.width * min(2**level, _WIDEST))


def build_segnet(
    input_shape: tuple[int | None, int | None, int],
    classes: int,
    *,
    options: SegnetOptions | None = None,
    weights: str | None = None,
) -> Any:
    """Build an uncompiled SegNet.

    Args:
        input_shape: `(height, width, channels)`; height and width may be `None`.
        classes: Number of output channels, two or more.
        options: The size of the network.
        weights: Of VGG16 for the encoder: `"imagenet"`, an HDF5 file, or `None` for random ones.

    Returns:
        A `keras.Model` from `float32` `(n, h, w, channels)`, already normalised, to `float32`
        `(n, h, w, classes)` probabilities; `h` and `w` are multiples of `options.stride_multiple`.

    Raises:
        ModelError: The weights cannot be had, or do not fit.
    """
    import keras
    from keras import layers

    from histoseg_train.architectures.pooling import MaskedMaxPooling2D

    options = options or SegnetOptions()
    features = image = keras.Input(input_shape, name="image")
    masks = []
    for level in range(options.depth):
        name = f"enc{level + 1}"
        features = conv_block(features, options.filters(level), name, units=CONVOLUTIONS[level])
        features, mask = MaskedMaxPooling2D(name=f"{name}_pool")(features)
        masks.append(mask)
    for level in reversed(range(options.depth)):
        features = _decode_level(features, masks[level], level, options)
    logits = layers.Conv2D(classes, 3, padding="same", name="head_logits")(features)
    model = keras.Model(image, classify(logits), name=options.name.replace("-", "_"))
    if weights is not None:
        load_vgg_weights(model, weights, CONVOLUTIONS[: options.depth])
    return model


def _decode_level(features: Any, mask: Any, level: int, options: SegnetOptions) -> Any:
    """Return the features at twice the size, each at its maximum's place, then convolved."""
    from keras import layers

    name = f"dec{level + 1}"
    repeated = layers.UpSampling2D(2, name=f"{name}_up")(features)
    features = layers.Multiply(name=f"{name}_place")([repeated, mask])
    # the last convolution of a level already has the next one's filters; at the first level it is the head
    units = CONVOLUTIONS[level] - 1
    features = conv_block(features, options.filters(level), name, units=units)
    return conv_block(features, options.filters(level - 1), f"{name}_out", units=1) if level else features
