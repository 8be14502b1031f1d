"""Rebuild a classifier as an encoder: finer features from the same weights, every layer named, padded alike.

Where a stride is taken out, what follows is spread: a kernel that met every second pixel of the finer map
meets the same pixels as before (Chen et al. 2014, https://arxiv.org/abs/1412.7062, the algorithme a trous).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from histoseg_train.architectures.blocks import BN_MOMENTUM


@dataclass(frozen=True)
class Step:
    """What becomes of one layer."""

    strides: int
    rate: int
    """The dilation of its kernel."""
    padding: Any
    """Of a kernel, `"same"` or `"valid"`; of a padding layer, rows and columns on each side; else `None`."""


def rebuild_encoder(classifier: Any, image: Any, *, output_stride: int, keep_weights: bool) -> Any:
    """Return the layers of a classifier on another image, with features that are no coarser than a stride.

    Convolutions that cut the border off are padded instead, so that features stay aligned with the image.
    Pooling windows keep their size, since Keras has none with gaps: with Xception and Inception-ResNet at
    output stride 8, one window is narrower than its neighbours.

    Args:
        classifier: One of `keras.applications`, without its top, of any height and width.
        image: A Keras tensor `(n, h, w, channels)`.
        output_stride: The coarsest stride, a power of two.
        keep_weights: Copy the weights; otherwise they are drawn anew.

    Returns:
        A model from `image` to the last features.
    """
    import keras

    steps = plan_steps(classifier, output_stride)
    names = name_layers(classifier)
    pairs: list[tuple[Any, Any]] = []

    def copy(layer: Any) -> Any:
        if type(layer).__name__ == "CustomScaleLayer":
            return layer
        config = _change(layer, steps[layer.name], names[layer.name])
        pairs.append((layer, layer.__class__.from_config(config)))
        return pairs[-1][1]

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if type(layer).__name__ == "CustomScaleLayer":  # not part of Keras's public layers: files lack it
            return _add_scaled(layer, args[0], names[layer.name])
        return layer(*args, **kwargs)

    encoder = keras.models.clone_model(classifier, image, clone_function=copy, call_function=call)
    for layer, new in pairs if keep_weights else ():
        new.set_weights(layer.get_weights())
    return encoder


def plan_steps(classifier: Any, output_stride: int) -> dict[str, Step]:
    """Decide strides, dilation and padding of each layer, by its name."""
    reached = {id(classifier.inputs[0]): (1, 1)}  # of each tensor: its stride, and the rate of what sees it
    makers = {id(layer.output): layer for layer in classifier.layers}
    steps: dict[str, Step] = {}
    for layer in classifier.layers[1:]:  # behind the image
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        stride, rate = (
            max(values) for values in zip(*(reached[id(tensor)] for tensor in inputs), strict=True)
        )
        step = max(getattr(layer, "strides", (1,)))
        keeps = step > 1 and stride * step > output_stride
        steps[layer.name] = Step(1 if keeps else step, rate, getattr(layer, "padding", None))
        before = makers[id(inputs[0])]
        if steps[layer.name].padding == "valid" and _size(layer) > 1:
            _pad(layer, before, steps)
        reached[id(layer.output)] = (stride, rate * step) if keeps else (stride * step, rate)
    return steps


def name_layers(classifier: Any) -> dict[str, str]:
    """Return a name for each layer; those that Keras made up and counted are counted anew."""
    counts: dict[str, int] = {}
    names = {}
    for layer in classifier.layers:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
        names[layer.name] = layer.name
        if re.fullmatch(rf"{kind}(_\d+)?", layer.name):
            counts[kind] = counts.get(kind, 0) + 1
            names[layer.name] = f"encoder_{kind}_{counts[kind]}"
    return names


def _pad(layer: Any, before: Any, steps: dict[str, Step]) -> None:
    """Let a kernel that cut the border off be padded: by the layer before it where there is one for that."""
    step = steps[layer.name]
    if type(before).__name__ != "ZeroPadding2D":
        steps[layer.name] = Step(step.strides, step.rate, "same")
    elif step.strides < max(layer.strides):
        rim = step.rate * (_size(layer) - 1) // 2
        steps[before.name] = Step(1, 1, ((rim, rim), (rim, rim)))


def _size(layer: Any) -> int:
    for name in ("kernel_size", "pool_size"):
        if hasattr(layer, name):
            return int(max(getattr(layer, name)))
    return 1


def _change(layer: Any, step: Step, name: str) -> dict[str, Any]:
    """Return the configuration of a layer after a step."""
    config = {**layer.get_config(), "name": name}
    if "strides" in config:
        config["strides"] = step.strides
    if "dilation_rate" in config and _size(layer) > 1:
        config["dilation_rate"] = step.rate
    if step.padding is not None:
        config["padding"] = step.padding
    if "momentum" in config:
        config["momentum"] = BN_MOMENTUM
    return config


def _add_scaled(layer: Any, pair: Any, name: str) -> Any:
    """Return the first tensor plus the scaled second: the residual of Inception-ResNet."""
    from keras import layers

    features, update = pair
    scaled = layers.Rescaling(layer.scale, name=f"{name}_scale")(update)
    return layers.Add(name=name)([features, scaled])
