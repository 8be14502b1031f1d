"""The architectures by name. Importing this module loads no Keras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from histoseg.errors import OptionError
from histoseg_train.architectures.deeplabv3 import DeepLabV3Options, build_deeplabv3
from histoseg_train.architectures.deeplabv3plus import DeepLabV3PlusOptions, build_deeplabv3plus
from histoseg_train.architectures.naming import parse_options
from histoseg_train.architectures.segnet import SegnetOptions, build_segnet
from histoseg_train.architectures.unet import UnetOptions, build_unet
from histoseg_train.architectures.unetplusplus import UnetPlusPlusOptions, build_unetplusplus

Shape = tuple[int | None, int | None, int]


class NetworkOptions(Protocol):
    """What the options of every architecture tell."""

    @property
    def name(self) -> str:
        """Return the full name, which `parse_architecture` reads."""

    @property
    def stride_multiple(self) -> int:
        """Return the number that height and width of the input must be multiples of."""


@dataclass(frozen=True)
class Architecture:
    """One family of networks."""

    words: str
    """What it is, for people."""
    options: Callable[..., NetworkOptions]
    """The dataclass of its options; called without any, it gives the usual ones."""
    build: Callable[..., Any]
    """Takes `(input_shape, classes, *, options)`, and `weights` where there is a pretrained encoder."""
    takes_weights: bool = True


ARCHITECTURES = {
    "deeplabv3": Architecture("atrous convolutions and a spatial pyramid", DeepLabV3Options, build_deeplabv3),
    "deeplabv3plus": Architecture(
        "DeepLabV3 with a decoder for sharp outlines", DeepLabV3PlusOptions, build_deeplabv3plus
    ),
    "segnet": Architecture("a mirrored VGG16 with pooling indices", SegnetOptions, build_segnet),
    "unet": Architecture("an encoder and a decoder with skips", UnetOptions, build_unet),
    "unetplusplus": Architecture(
        "a U-Net with convolved skips", UnetPlusPlusOptions, build_unetplusplus, takes_weights=False
    ),
}


def parse_architecture(name: str) -> NetworkOptions:
    """Return the options that a full name gives, such as `unet-w16-d4` or `deeplabv3plus-resnet50-o16`.

    Args:
        name: A key of `ARCHITECTURES`, and options in any order; what is left out takes its default.

    Raises:
        OptionError: There is no such architecture or option, or the options make no network.
    """
    base = name.partition("-")[0]
    if base not in ARCHITECTURES:
        raise OptionError(
            f"--arch is '{name}', expected one of {', '.join(ARCHITECTURES)}, with options as in unet-w16-d4"
        )
    return parse_options(name, ARCHITECTURES[base].options)


def build_architecture(
    input_shape: Shape, classes: int, *, options: NetworkOptions, weights: str | None = None
) -> Any:
    """Build an uncompiled network.

    Args:
        input_shape: `(height, width, channels)`; height and width may be `None`.
        classes: Number of output channels, two or more.
        options: What `parse_architecture` returned, or the options of an architecture.
        weights: Of the encoder: `"imagenet"`, the path of an HDF5 file, or `None` for random ones.

    Returns:
        A `keras.Model` from `float32` `(n, h, w, channels)`, already normalised, to `float32`
        `(n, h, w, classes)` probabilities.

    Raises:
        ModelError: The weights cannot be had, or do not fit.
        OptionError: The architecture has no pretrained encoder.
    """
    architecture = ARCHITECTURES[options.name.partition("-")[0]]
    plain = not architecture.takes_weights or getattr(options, "encoder", None) == "plain"
    if weights is None:
        return architecture.build(input_shape, classes, options=options)
    if plain:
        raise OptionError(
            f"--weights is '{weights}', but {options.name} has no pretrained encoder; leave it out"
        )
    return architecture.build(input_shape, classes, options=options, weights=weights)
