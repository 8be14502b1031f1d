"""Networks that segment: each in its own file, of shared blocks and encoders, by name in `ARCHITECTURES`."""

from histoseg_train.architectures.registry import (
    ARCHITECTURES,
    Architecture,
    NetworkOptions,
    build_architecture,
    parse_architecture,
)
from histoseg_train.architectures.unet import UnetOptions, build_unet

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "NetworkOptions",
    "UnetOptions",
    "build_architecture",
    "build_unet",
    "parse_architecture",
]
