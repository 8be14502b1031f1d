"""Ask a model of Keras 3 or of `tf_keras` the same questions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

CHANNELS_LAST = "to_channels_last"
"""Name of the layer that turns the maps of a channels-first model."""


def is_tf_keras(model: Any) -> bool:
    """Tell whether a model or layer belongs to `tf_keras`."""
    return any(kind.__module__.startswith("tf_keras.") for kind in type(model).__mro__)


def keras_of(model: Any) -> Any:
    """Return the module, `keras` or `tf_keras`, that a model or layer belongs to."""
    if is_tf_keras(model):
        import tf_keras

        return tf_keras
    import keras

    return keras


def is_model(layer: Any) -> bool:
    """Tell whether a layer is a network of its own."""
    return hasattr(layer, "layers") and bool(getattr(layer, "outputs", None))


def iter_layers(model: Any) -> Iterator[Any]:
    """Yield the layers of a model, and of the models in it, in the order of their creation."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from iter_layers(layer)
        else:
            yield layer


def names_of(layer: Any) -> dict[str, Any]:
    """Return what a layer's configuration refers to by name: its class and its activation."""
    names = {type(layer).__name__: type(layer)}
    activation = getattr(layer, "activation", None)
    if activation is not None and hasattr(activation, "__name__"):
        names[activation.__name__] = activation
    return names


def maker_of(tensor: Any) -> Any:
    """Return the layer or operation that makes a symbolic tensor."""
    history = tensor._keras_history
    return history.operation if hasattr(history, "operation") else history.layer


def iter_tensors(model: Any) -> Iterator[Any]:
    """Yield the symbolic tensors that a model's outputs are made of, as they are in this model."""
    waiting, seen = list(model.outputs), set[int]()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor
            node = maker_of(tensor)._inbound_nodes[tensor._keras_history.node_index]
            waiting += node.keras_inputs if hasattr(node, "keras_inputs") else node.input_tensors


def source_of(layer: Any) -> Any:
    """Return the one symbolic tensor that a layer takes; `None` where it takes several."""
    return None if isinstance(layer.input, list | tuple | dict) else layer.input


def image_size(model: Any) -> tuple[int | None, int | None]:
    """Return height and width of the input, whatever its layout."""
    shape = model.inputs[0].shape
    height, width = shape[2:] if is_channels_first(model) else shape[1:3]
    return height, width


def is_channels_first(model: Any) -> bool:
    """Tell whether a model takes images with their channels before height and width."""
    shape = model.inputs[0].shape
    return shape[3] not in (1, 3) and shape[1] in (1, 3)


def words_of(shape: Any) -> str:
    """Return a shape in words: `(any, 64, 64, 3)`."""
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
