"""The U-Net: encoder, decoder and head.

Ronneberger, Fischer and Brox 2015, https://arxiv.org/abs/1505.04597, with batch normalisation, padded
convolutions and learned up-sampling; or with the encoder of a classifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from histoseg_train.architectures.blocks import classify, conv_block, conv_unit, up_join
from histoseg_train.architectures.encoders import ENCODERS, build_features
from histoseg_train.architectures.naming import check_choices, check_size, format_name, number, word


@dataclass(frozen=True)
class UnetOptions:
    """The size of a U-Net."""

    encoder: str = word("plain", ("plain", *ENCODERS))
    """The paper's own, or a classifier's; with that, the levels are the decoder's."""
    width: int = number("w", 16, shown=True)
    """Filters of the first level; each level below has twice as many."""
    depth: int = number("d", 4, shown=True)
    """Number of times the encoder halves the image."""
    max_width: int | None = number("m", None)
    """The most filters any level may have."""
    stem_stride: int = number("s", 1)
    """2 runs the whole U-Net at half resolution between a strided stem and a transposed head: much faster."""
    skip_width: int = number("k", 0)
    """Filters of a full-resolution skip past a strided stem, which keeps outlines sharp; 0 leaves it out."""

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        check_choices(self)
        check_size(self.width, self.depth, cap=self.max_width)
        if self.max_width is not None and self.max_width < self.width:
            raise ValueError(f"max_width is {self.max_width}, expected at least the width, {self.width}")
        if self.stem_stride not in (1, 2):
            raise ValueError(f"stem_stride is {self.stem_stride}, expected 1 or 2")
        if self.skip_width < 0 or (self.skip_width and self.stem_stride == 1):
            raise ValueError(f"skip_width is {self.skip_width}, expected 0, or a stem_stride of 2")
        if self.encoder != "plain" and (self.depth > 5 or self.stem_stride > 1):
            raise ValueError(
                f"depth is {self.depth} and stem_stride {self.stem_stride}, expected at most 5, and 1, with "
                f"the encoder {self.encoder}"
            )

    @property
    def name(self) -> str:
        """Return the name that goes into the model card, such as `unet-w16-d4-m64-s2-k8`."""
        return format_name("unet", self)

    @property
    def stride_multiple(self) -> int:
        """Return the number that height and width of the input must be multiples of."""
        return int(self.stem_stride * 2**self.depth)

    def filters(self, level: int) -> int:
        """Return the filters at `level`, 0 being the first and `depth` the bottom."""
        return int(min(self.width * 2**level, self.max_width or self.width * 2**level))


def build_unet(
    input_shape: tuple[int | None, int | None, int],
    classes: int,
    *,
    options: UnetOptions | None = None,
    weights: str | None = None,
) -> Any:
    """Build an uncompiled U-Net.

    Args:
        input_shape: `(height, width, channels)`; height and width may be `None`.
        classes: Number of output channels, two or more.
        options: The size of the network.
        weights: Of the encoder, as for `build_features`; a plain encoder has none.

    Returns:
        A `keras.Model` from `float32` `(n, h, w, channels)`, already normalised, to `float32`
        `(n, h, w, classes)` probabilities; `h` and `w` are multiples of `options.stride_multiple`.

    Raises:
        ModelError: The weights cannot be had, or do not fit.
    """
    import keras

    options = options or UnetOptions()
    image = keras.Input(input_shape, name="image")
    decoded = _decode(_encode(image, options, weights), options)
    probabilities = classify(_head(decoded, image, classes, options))
    return keras.Model(image, probabilities, name=options.name.replace("-", "_"))


def _encode(image: Any, options: UnetOptions, weights: str | None) -> list[Any]:
    """Return the features of each level, the bottom last; `None` at full size where the encoder has none."""
    from keras import layers

    if options.encoder != "plain":
        return [None, *build_features(options.encoder, image, weights=weights, depth=options.depth)]
    features = (
        image if options.stem_stride == 1 else conv_unit(image, options.width, "stem", size=4, strides=2)
    )
    levels = []
    for level in range(options.depth):
        levels.append(conv_block(features, options.filters(level), f"enc{level + 1}"))
        features = layers.MaxPooling2D(2, name=f"enc{level + 1}_pool")(levels[-1])
    return [*levels, conv_block(features, options.filters(options.depth), "bottom")]


def _decode(levels: list[Any], options: UnetOptions) -> Any:
    """Return features of the first level's size."""
    *skips, features = levels
    for level in reversed(range(options.depth)):
        name, filters = f"dec{level + 1}", options.filters(level)
        joined = up_join(features, [] if skips[level] is None else [skips[level]], filters, name)
        features = conv_block(joined, filters, name)
    return features


def _head(features: Any, image: Any, classes: int, options: UnetOptions) -> Any:
    """Return logits at the image's size."""
    from keras import layers

    if options.stem_stride == 1:
        return layers.Conv2D(classes, 1, name="head_logits")(features)
    if not options.skip_width:
        return layers.Conv2DTranspose(classes, 2, strides=2, name="head_logits")(features)
    skip = conv_unit(image, options.skip_width, "head_skip")
    joined = up_join(features, [skip], options.skip_width, "head")
    return layers.Conv2D(classes, 3, padding="same", name="head_logits")(joined)
