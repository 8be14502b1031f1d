"""What DeepLabV3 and DeepLabV3+ share: an encoder that keeps its resolution, and the spatial pyramid."""

from __future__ import annotations

from typing import Any

from histoseg_train.architectures.blocks import conv_unit, normalize, separable_unit
from histoseg_train.architectures.encoders import ENCODERS, build_features, build_plain_features
from histoseg_train.architectures.naming import MOST_FILTERS, check_choices

# of the pyramid's 3x3 convolutions at output stride 16; twice that at 8
RATES = (6, 12, 18)

CHOICES = ("plain", *ENCODERS)


def check_options(options: Any) -> None:
    """Refuse options that make no DeepLab.

    Raises:
        ValueError: The message names the option.
    """
    check_choices(options)
    if options.output_stride not in (8, 16):
        raise ValueError(f"output_stride is {options.output_stride}, expected 8 or 16")
    if not 1 <= options.width <= MOST_FILTERS:
        raise ValueError(f"width is {options.width}, expected 1 to {MOST_FILTERS}")


def encode(image: Any, options: Any, weights: str | None) -> list[Any]:
    """Return the features at strides 2, 4, 8 and on; none is coarser than the output stride."""
    if options.encoder == "plain":
        width = max(1, options.width // 8)
        return build_plain_features(image, width, output_stride=options.output_stride)
    return build_features(options.encoder, image, weights=weights, output_stride=options.output_stride)


def pool_pyramid(features: Any, width: int, *, output_stride: int, separable: bool) -> Any:
    """Return the features seen at several rates and as a whole: atrous spatial pyramid pooling.

    Chen, Papandreou, Schroff and Adam 2017, https://arxiv.org/abs/1706.05587, figure 5. The whole-image
    branch has one value for each channel; where the paper repeats it over the map and convolves it with the
    others, its share of that 1x1 convolution is added: the same sum, and no repetition.

    Args:
        features: The encoder's last.
        width: Filters of every branch and of the result.
        output_stride: Of the features, 8 or 16.
        separable: Convolve each channel alone before mixing them.
    """
    from keras import layers

    unit = separable_unit if separable else conv_unit
    branches = [conv_unit(features, width, "aspp1", size=1)]
    for index, rate in enumerate(RATES, start=2):
        branches.append(unit(features, width, f"aspp{index}", rate=rate * 16 // output_stride))
    mean = layers.GlobalAveragePooling2D(keepdims=True, name="aspp_mean")(features)
    mean = conv_unit(mean, width, "aspp_mean", size=1)
    share = layers.Conv2D(width, 1, use_bias=False, name="aspp_mean_share")(mean)
    joined = layers.Concatenate(name="aspp_join")(branches)
    mixed = layers.Conv2D(width, 1, use_bias=False, name="aspp_conv")(joined)
    return normalize(layers.Add(name="aspp_add")([mixed, share]), "aspp")
