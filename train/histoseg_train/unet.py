"""The U-Net: encoder, decoder and head.

Ronneberger, Fischer and Brox 2015, https://arxiv.org/abs/1505.04597, with batch normalisation, padded
convolutions and learned up-sampling. Transposed convolutions of size 2 and stride 2 are used for up-sampling
because they can be traced with unknown height and width and become one ONNX node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Moving statistics must settle within short runs.
BN_MOMENTUM = 0.95


@dataclass(frozen=True)
class UnetOptions:
    """The size of a U-Net."""

    width: int = 16
    """Filters of the first level; each level below has twice as many."""
    depth: int = 4
    """Number of times the encoder halves the image."""
    max_width: int | None = None
    """The most filters any level may have."""
    stem_stride: int = 1
    """2 runs the whole U-Net at half resolution between a strided stem and a transposed head: much faster."""
    skip_width: int = 0
    """Filters of a full-resolution skip past a strided stem, which keeps outlines sharp; 0 leaves it out."""

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        if self.width < 1 or self.depth < 1:
            raise ValueError(f"width is {self.width} and depth {self.depth}, expected 1 or more")
        if self.max_width is not None and self.max_width < self.width:
            raise ValueError(f"max_width is {self.max_width}, expected at least the width, {self.width}")
        if self.stem_stride not in (1, 2):
            raise ValueError(f"stem_stride is {self.stem_stride}, expected 1 or 2")
        if self.skip_width < 0 or (self.skip_width and self.stem_stride == 1):
            raise ValueError(f"skip_width is {self.skip_width}, expected 0, or a stem_stride of 2")

    @property
    def name(self) -> str:
        """Return the name that goes into the model card, such as `unet-w16-d4-m64-s2-k8`."""
        parts = [f"unet-w{self.width}-d{self.depth}"]
        parts += [f"m{self.max_width}"] if self.max_width else []
        parts += [f"s{self.stem_stride}"] if self.stem_stride > 1 else []
        return "-".join(parts + ([f"k{self.skip_width}"] if self.skip_width else []))

    @property
    def stride_multiple(self) -> int:
        """Return the number that height and width of the input must be multiples of."""
        return self.stem_stride * 2**self.depth

    def filters(self, level: int) -> int:
        """Return the filters at `level`, 0 being the first and `depth` the bottom."""
        return min(self.width * 2**level, self.max_width or self.width * 2**level)


def build_unet(
    input_shape: tuple[int | None, int | None, int], classes: int, *, options: UnetOptions | None = None
) -> Any:
    """Build an uncompiled U-Net.

    Args:
        input_shape: `(height, width, channels)`; height and width may be `None`.
        classes: Number of output channels, two or more.
        options: The size of the network.

    Returns:
        A `keras.Model` from `float32` `(n, h, w, channels)`, already normalised, to `float32`
        `(n, h, w, classes)` probabilities; `h` and `w` are multiples of `options.stride_multiple`.
    """
    import keras

    options = options or UnetOptions()
    image = keras.Input(input_shape, name="image")
    stem = image if options.stem_stride == 1 else _conv_unit(image, options.width, "stem", size=4, strides=2)
    bottom, skips = _encode(stem, options)
    decoded = _decode(bottom, skips, options)
    logits = _head(decoded, image, classes, options)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
    return keras.Model(image, probabilities, name=options.name.replace("-", "_"))


def _encode(features: Any, options: UnetOptions) -> tuple[Any, list[Any]]:
    """Return the bottom features and one skip for each level, finest first."""
    from keras import layers

    skips = []
    for level in range(options.depth):
        features = _block(features, options.filters(level), f"enc{level + 1}")
        skips.append(features)
        features = layers.MaxPooling2D(2, name=f"enc{level + 1}_pool")(features)
    return _block(features, options.filters(options.depth), "bottom"), skips


def _decode(features: Any, skips: list[Any], options: UnetOptions) -> Any:
    """Return features of the finest skip's size."""
    for level in reversed(range(options.depth)):
        name = f"dec{level + 1}"
        features = _up_join(features, skips[level], options.filters(level), name)
        features = _block(features, options.filters(level), name)
    return features


def _head(features: Any, image: Any, classes: int, options: UnetOptions) -> Any:
    """Return logits at the image's size."""
    from keras import layers

    if options.stem_stride == 1:
        return layers.Conv2D(classes, 1, name="head_logits")(features)
    if not options.skip_width:
        return layers.Conv2DTranspose(classes, 2, strides=2, name="head_logits")(features)
    skip = _conv_unit(image, options.skip_width, "head_skip")
    joined = _up_join(features, skip, options.skip_width, "head")
    return layers.Conv2D(classes, 3, padding="same", name="head_logits")(joined)


def _up_join(features: Any, skip: Any, filters: int, name: str) -> Any:
    from keras import layers

    raised = layers.Conv2DTranspose(filters, 2, strides=2, name=f"{name}_up")(features)
    return layers.Concatenate(name=f"{name}_join")([skip, raised])


def _block(features: Any, filters: int, name: str) -> Any:
    for index in (1, 2):
        features = _conv_unit(features, filters, f"{name}_{index}")
    return features


def _conv_unit(features: Any, filters: int, name: str, *, size: int = 3, strides: int = 1) -> Any:
    """Return convolution, batch normalisation and ReLU."""
    from keras import layers

    conv = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False, name=f"{name}_conv")
    features = layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"{name}_norm")(conv(features))
    return layers.ReLU(name=f"{name}_relu")(features)
