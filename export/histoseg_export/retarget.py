"""Rebuild a network for one tile size, so that no shape arithmetic stays in its graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from histoseg.errors import ModelError
from histoseg_export.anykeras import is_model, is_tf_keras, iter_layers, maker_of, names_of
from histoseg_export.describe import INPUT_NAME
from histoseg_export.naming import LAYER_MARK
from histoseg_train.kerasfile import summarize_error

CopyLayer = Callable[[Any], Any]


def fix_size(model: Any, tile: tuple[int, int], *, copy: CopyLayer | None = None) -> Any:
    """Rebuild a model for one tile size.

    Args:
        model: A model of Keras 3 or `tf_keras`, of any or another input size.
        tile: Width and height.
        copy: Makes a layer of the new model from one of Keras 3; a copy of the same kind when `None`.

    Returns:
        A model with the same weights and input `(batch, height, width, channels)`.

    Raises:
        ModelError: The network does not allow this size, or its output is of another size than its input.
    """
    width, height = tile
    rebuild = _rebuild_tf_keras if is_tf_keras(model) else _rebuild_keras
    try:
        fixed = rebuild(model, tile, copy or copy_layer)
        _copy_weights(model, fixed)
        found = _output_size(fixed, tile)
    except Exception as error:  # layers raise what they like
        words = summarize_error(error)
        if tuple(model.inputs[0].shape[1:3]) == (height, width):
            raise ModelError(f"the network cannot be rebuilt ({words}); please report this model") from error
        raise ModelError(
            f"the network does not take tiles of {width}x{height} px ({words}); {_advise_size(model)}"
        ) from error
    if found != (height, width):
        raise ModelError(
            f"the output is {found[1]}x{found[0]} px for an input of {width}x{height}, "
            f"expected the same size; {_advise_output(model, found, (height, width))}"
        )
    return fixed


def accepts_tile(model: Any, tile: tuple[int, int]) -> bool:
    """Tell whether a model takes any number of images of a width and height as it is."""
    count, height, width, _ = model.inputs[0].shape
    return count is None and width in (None, tile[0]) and height in (None, tile[1])


def copy_layer(layer: Any, kind: Any = None) -> Any:
    """Copy a layer of Keras 3 without its weights, and mark its name.

    Args:
        layer: What to copy.
        kind: Class of the copy; the layer's own when `None`.
    """
    import keras

    config = layer.get_config()
    with keras.saving.custom_object_scope(names_of(layer)):
        return (kind or type(layer)).from_config({**config, "name": f"{layer.name}{LAYER_MARK}"})


def _copy_weights(model: Any, fixed: Any) -> None:
    """Give a rebuilt network the weights of its original."""
    fixed.set_weights(model.get_weights())
    for layer in iter_layers(fixed):
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()  # an adapted `Normalization` computes with copies of its weights


def _output_size(fixed: Any, tile: tuple[int, int]) -> tuple[int, int]:
    """Return the output's height and width; a graph whose shapes are unknown is run to learn them."""
    height, width = fixed.outputs[0].shape[1:3]
    if None in (height, width):
        image = np.zeros((1, tile[1], tile[0], fixed.inputs[0].shape[3]), np.float32)
        height, width = fixed(image, training=False).shape[1:3]
    return int(height), int(width)


def _advise_size(model: Any) -> str:
    own = tuple(model.inputs[0].shape[1:3])
    return "give another --tile, a multiple of 32" if None in own else _advise_tile(own)


def _advise_tile(size: tuple[int, int]) -> str:
    flag = f" (--tile {size[0]})" if size[0] == size[1] else ""
    return f"it takes {size[1]}x{size[0]} px{flag}"


def _advise_output(model: Any, found: tuple[int, int], size: tuple[int, int]) -> str:
    """Say how a network comes to end at the size of its input; sizes are heights and widths."""
    own, result = tuple(model.inputs[0].shape[1:3]), tuple(model.outputs[0].shape[1:3])
    if None not in result and (own == result or None in own):
        return _advise_tile(result)
    factor = size[0] // max(found[0], 1)
    if factor > 1 and (found[0] * factor, found[1] * factor) == size:
        return (
            f"build it with a last UpSampling2D({factor}), which has no weights, and give that with "
            "--builder FILE.py:FUNCTION"
        )
    if min(found) >= min(size):
        return "build it without its last up-sampling, and give that with --builder FILE.py:FUNCTION"
    if None in own and any(side % 32 for side in size):
        return "give another --tile, a multiple of 32"
    return (
        "it cuts off borders (padding 'valid', or a cropping): build it with padding='same', whose weights "
        "are the same, and give that with --builder FILE.py:FUNCTION"
    )


def _rebuild_keras(model: Any, tile: tuple[int, int], copy: CopyLayer) -> Any:
    import keras

    width, height = tile
    shape = (height, width, model.inputs[0].shape[3])
    image = keras.Input(shape, name=INPUT_NAME, dtype=model.inputs[0].dtype)
    return _Copies(copy).rebuild(model, image)


class _Copies:
    """Layers and networks of one model that were copied so far: what is shared stays shared."""

    def __init__(self, copy: CopyLayer) -> None:
        self._copy = copy
        self._layers: dict[int, Any] = {}
        self._networks: dict[int, Any] = {}

    def rebuild(self, network: Any, images: Any) -> Any:
        """Return a copy of a network of Keras 3 on other inputs."""
        import keras

        if isinstance(network, keras.Sequential):
            network = keras.Model(network.inputs[0], network.outputs[0], name=network.name)
        return keras.models.clone_model(
            network, input_tensors=images, clone_function=self._copy_once, call_function=self._call
        )

    def _copy_once(self, layer: Any) -> Any:
        """Copy a layer; a network in the network waits until it is called, and so knows its input."""
        if is_model(layer) or getattr(layer, "histoseg_reuse", False):
            return layer
        if id(layer) not in self._layers:
            self._layers[id(layer)] = self._copy(layer)
        return self._layers[id(layer)]

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        import keras

        if not is_model(layer):
            return layer(*args, **kwargs)
        if id(layer) not in self._networks:
            images = keras.tree.map_structure(
                lambda tensor: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype), args[0]
            )
            self._networks[id(layer)] = self.rebuild(layer, images)
        return self._networks[id(layer)](*args, **kwargs)


def _rebuild_tf_keras(model: Any, tile: tuple[int, int], copy: CopyLayer) -> Any:
    """Build from a configuration with other input sizes; `tf_keras` infers all shapes anew."""
    del copy  # what Keras 3 needs replaced, `tf_keras` converts as it is
    width, height = tile
    config = _resize(model.get_config())
    image = maker_of(model.inputs[0]).name
    for layer in config["layers"]:
        if layer["name"] == image:
            layer["config"]["batch_input_shape"] = (None, height, width, model.inputs[0].shape[3])
    custom = {name: value for layer in iter_layers(model) for name, value in names_of(layer).items()}
    fixed = model.__class__.from_config(config, custom_objects=custom)
    for layer in iter_layers(fixed):
        layer._name = f"{layer.name}{LAYER_MARK}"  # a name that tracing shows
    return fixed


def _resize(config: Any) -> Any:
    """Return a configuration in which networks within the network take images of any size."""
    if isinstance(config, list):
        return [_resize(value) for value in config]
    if isinstance(config, tuple):
        return tuple(_resize(value) for value in config)
    if not isinstance(config, dict):
        return config
    changed = {key: _resize(value) for key, value in config.items()}
    for key in ("batch_input_shape", "build_input_shape"):
        shape = changed.get(key)
        if isinstance(shape, list | tuple) and len(shape) == 4:
            channels_first = shape[1] in (1, 3) and shape[3] not in (1, 3)
            changed[key] = (None, shape[1], None, None) if channels_first else (None, None, None, shape[3])
    return changed
