"""Networks that segment: each in its own file, of shared blocks and encoders, by name in `ARCHITECTURES`."""

from histoseg_train.architectures.registry import (
    ARCHITECTURES,
    Architecture,
    NetworkOptions,
    build_architecture,
    parse_architecture,
)  # fmt: skip

__all__ = ["ARCHITECTURES", "Architecture", "NetworkOptions", "build_architecture", "parse_architecture"]
