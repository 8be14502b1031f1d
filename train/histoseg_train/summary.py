"""What a network is made of and what it costs: layers, parameters, receptive field, operations per tile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from histoseg_train.architectures import NetworkOptions, build_architecture
from histoseg_train.receptive import ReceptiveField, find_receptive_field


@dataclass(frozen=True)
class LayerGroup:
    """All layers of one kind."""

    kind: str
    """Keras's class."""
    layers: int
    parameters: int
    flops: int


@dataclass(frozen=True)
class NetworkSummary:
    """What `histoseg-train summary` prints."""

    architecture: str
    tile_px: int
    classes: int
    layers: int
    parameters: int
    trainable_parameters: int
    receptive_field: ReceptiveField
    flops: int
    """Of convolutions, two for every multiply-add, per tile."""
    groups: tuple[LayerGroup, ...]
    """Kinds of layers that hold parameters or are counted as operations, dearest first."""


def summarize_network(options: NetworkOptions, *, tile_px: int, classes: int) -> NetworkSummary:
    """Build a network and count what it is made of.

    Args:
        options: Which network.
        tile_px: Width and height of the input, a multiple of `options.stride_multiple`.
        classes: Number of output channels.
    """
    model = build_architecture((tile_px, tile_px, 3), classes, options=options)
    groups = _group(model)
    return NetworkSummary(
        architecture=options.name,
        tile_px=tile_px,
        classes=classes,
        layers=len(model.layers),
        parameters=model.count_params(),
        trainable_parameters=sum(math.prod(weight.shape) for weight in model.trainable_weights),
        receptive_field=find_receptive_field(model),
        flops=sum(group.flops for group in groups),
        groups=groups,
    )


def count_flops(layer: Any) -> int:
    """Return the operations of a layer on one image: two for every multiply-add of its convolutions.

    Biases, normalisation, activations, pooling and interpolation are left out, as is usual: they are a few
    percent of a convolutional network.
    """
    kind = type(layer).__name__
    if kind not in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"):
        return 0
    _, height, width, channels = layer.output.shape
    if kind == "SeparableConv2D":
        across = layer.depthwise_kernel.shape[2] * layer.depth_multiplier * channels
        return int(2 * height * width * (math.prod(layer.depthwise_kernel.shape) + across))
    if kind == "Conv2DTranspose":  # every input pixel is multiplied by the whole kernel
        _, height, width, _ = layer.input.shape
    # the kernel of a depthwise or grouped convolution holds only the channels that it multiplies
    return int(2 * height * width * math.prod(layer.kernel.shape))


def _group(model: Any) -> tuple[LayerGroup, ...]:
    kinds: dict[str, list[Any]] = {}
    for layer in model.layers:
        kinds.setdefault(type(layer).__name__, []).append(layer)
    groups = (
        LayerGroup(
            kind,
            len(layers),
            sum(layer.count_params() for layer in layers),
            sum(count_flops(layer) for layer in layers),
        )
        for kind, layers in kinds.items()
    )
    counted = (group for group in groups if group.parameters or group.flops)
    return tuple(sorted(counted, key=lambda group: (-group.flops, -group.parameters)))
