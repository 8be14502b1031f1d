"""Read what Keras 2 saved with `tf_keras`, Keras 2's own continuation.

Keras 3 refuses many of these files, and reads others differently: its `hard_sigmoid` is steeper, for one.
`tf_keras` has no safe mode for HDF5 files, so the configuration is vetted before it sees it.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from histoseg.errors import ModelError
from histoseg_export.loaders.cleaning import (
    Cleaner,
    note_precision,
    refuse_other_generation,
    write_cleaned,
)
from histoseg_export.loaders.opnames import PURE_OPS, is_pure_function
from histoseg_export.loaders.replicas import merge_replicas
from histoseg_export.loaders.source import CannotReadError, LoadedModel, LoadOptions, Source
from histoseg_export.loaders.userfile import read_names
from histoseg_export.loaders.vetting import vet_config
from histoseg_train.kerasfile import Vocabulary, summarize_error

_OP_LAYERS = frozenset({"SlicingOpLambda", "TFOpLambda", "TensorFlowOpLayer"})
_MODELS = frozenset({"Functional", "InputLayer", "Model", "Sequential"})
# these read other files, hold state, or are bases that nobody saves
_REFUSED_LAYERS = frozenset(
    {"DenseFeatures", "IntegerLookup", "Lambda", "StringLookup", "TextVectorization", "experimental"}
)
_MIRRORED = frozenset({"Conv2D", "Conv2DTranspose"})
_MIRRORED_UNKNOWN = frozenset({"DepthwiseConv2D", "SeparableConv2D"})


def load_with_tf_keras(source: Source, options: LoadOptions) -> LoadedModel:
    """Load a whole model that Keras 2 saved.

    Raises:
        ModelError: It would run code, needs what Keras lacks, or cannot be read; the message names which.
    """
    import keras

    tf_keras = import_tf_keras()
    assert source.config is not None
    if source.generation == 1:
        raise ModelError(
            f"{source.path}: saved by {source.saved_by}, whose layers later ones do not know, "
            "expected Keras 2.0 or later; load it with Keras 2.0 to 2.2, and save it again"
        )
    names = read_names(options.custom_objects) if options.custom_objects else {}
    config, notes = _mark_legacy_resizing(source)
    config, merged = merge_replicas(config)
    cleaned = Cleaner(VOCABULARY, names, _make_layer, source.kind == "h5").clean(config)
    cleaned.custom_objects[_LEGACY_RESIZING] = _make_legacy_resizing()
    refuse_operations(source.path, cleaned.config)
    vet_config(source, cleaned, VOCABULARY)
    refuse_other_generation(cleaned, keras.layers.Layer, f"tf_keras {tf_keras.__version__}", "tf_keras")
    with tempfile.TemporaryDirectory() as folder:
        path = write_cleaned(source, cleaned.config, Path(folder))
        try:
            model = tf_keras.models.load_model(
                path, custom_objects=cleaned.custom_objects, compile=False, safe_mode=True
            )
        except Exception as error:  # Keras lets any exception of a layer through
            raise CannotReadError(f"tf_keras {tf_keras.__version__}", summarize_error(error)) from error
    notes += merged + _mirror_theano_kernels(source, model)
    return LoadedModel(model, f"tf_keras {tf_keras.__version__}", (*notes, *note_precision(cleaned)))


def import_tf_keras() -> Any:
    """Import tf_keras.

    Raises:
        ModelError: It is not installed, or does not fit TensorFlow.
    """
    try:
        import tf_keras
    except ImportError as error:
        raise ModelError(
            f"files that Keras 2 saved need tf_keras ({error}); "
            "install histoseg again with its extra [export]"
        ) from error
    return tf_keras


def refuse_operations(path: Path, config: Any) -> None:
    """Refuse layers that stand for an operation of TensorFlow which does more than compute.

    Raises:
        ModelError: The message names them.
    """
    found = list(dict.fromkeys(_iter_impure(config)))
    if found:
        raise ModelError(
            f"{path}: uses {', '.join(found)}, expected operations that only compute; "
            "replace these layers, and save the model again"
        )


def _iter_impure(config: Any) -> Iterator[str]:
    if isinstance(config, list):
        for value in config:
            yield from _iter_impure(value)
    elif isinstance(config, dict):
        if config.get("class_name") in _OP_LAYERS and isinstance(config.get("config"), dict):
            name, pure = _judge_operation(config["config"])
            if not pure:
                yield f"TensorFlow's '{name}'"
        for value in config.values():
            yield from _iter_impure(value)


def _judge_operation(config: dict[str, Any]) -> tuple[str, bool]:
    if "function" in config:
        return str(config["function"]), is_pure_function(str(config["function"]))
    node = config.get("node_def", "")
    operation = _read_operation(node) if isinstance(node, str) else str(dict(node).get("op"))
    return operation, operation in PURE_OPS


def _read_operation(node: str) -> str:
    """Return the operation of a serialised node, as TensorFlow 2.0 stored it."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework import node_def_pb2

    try:
        return str(node_def_pb2.NodeDef.FromString(node.encode("utf-8")).op)
    except DecodeError:
        return "an unreadable operation"


def _mark_legacy_resizing(source: Source) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Name bilinear up-sampling of old files for what it did: no half-pixel centres.

    Keras 2.2.3 to 2.3.1 called `resize_bilinear` of TensorFlow 1, which takes pixel corners for centres; so
    did tf.keras before TensorFlow 1.14, whose files look like those of later ones ("2.2.4-tf").
    """
    assert source.config is not None
    text = json.dumps(source.config)
    if '"bilinear"' not in text or "UpSampling2D" not in text or source.kind != "h5":
        return source.config, ()
    version = tuple(int(part) for part in source.keras_version.split("-")[0].split(".")[:2] if part.isdigit())
    if version >= (2, 4) or not version:
        return source.config, ()
    if source.keras_version.endswith("-tf"):
        words = "bilinear up-sampling is taken as TensorFlow 1.14 and later did it; before, it was shifted"
        return source.config, ((words,) if version < (2, 3) else ())
    words = f"bilinear up-sampling is done as {source.saved_by} did it, without half-pixel centres"
    return _rename_bilinear(source.config), (words,)


def _rename_bilinear(config: Any) -> Any:
    if isinstance(config, list):
        return [_rename_bilinear(value) for value in config]
    if not isinstance(config, dict):
        return config
    inner = config.get("config")
    if (
        config.get("class_name") == "UpSampling2D"
        and isinstance(inner, dict)
        and inner.get("interpolation") == "bilinear"
    ):
        config = {**config, "class_name": _LEGACY_RESIZING}
    return {key: _rename_bilinear(value) for key, value in config.items()}


_LEGACY_RESIZING = "LegacyUpSampling2D"


def _make_legacy_resizing() -> type:
    import tensorflow as tf
    import tf_keras

    class LegacyUpSampling2D(tf_keras.layers.UpSampling2D):  # type: ignore[misc]
        """Bilinear up-sampling as Keras 2.2 and 2.3 did it on TensorFlow 1."""

        def call(self, inputs: Any) -> Any:
            """Resize without half-pixel centres."""
            size = tf.shape(inputs)[1:3] * tf.constant(self.size)
            if None not in inputs.shape[1:3]:
                size = [side * factor for side, factor in zip(inputs.shape[1:3], self.size, strict=True)]
            return tf.compat.v1.image.resize_bilinear(inputs, size, half_pixel_centers=False)

    return LegacyUpSampling2D


def _make_layer(name: str, function: Callable[..., Any], arguments: dict[str, Any]) -> type:
    import tf_keras

    class Replacement(tf_keras.layers.Layer):  # type: ignore[misc]
        """A function of the caller's, in place of a Lambda layer."""

        def call(self, inputs: Any) -> Any:
            """Apply the function."""
            return function(inputs, **arguments)

    Replacement.__name__ = Replacement.__qualname__ = name
    return Replacement


def _mirror_theano_kernels(source: Source, model: Any) -> tuple[str, ...]:
    """Turn kernels around that Keras 2 trained on Theano, which convolves; the others correlate.

    Raises:
        ModelError: There are layers of which Keras never said whether their kernels were turned.
    """
    import h5py

    if source.kind != "h5":
        return ()
    with h5py.File(source.path, "r") as file:
        backend = file.attrs.get("backend", "tensorflow")
    if (backend.decode() if isinstance(backend, bytes) else backend) != "theano":
        return ()
    for layer in iter_layers(model):
        kind = type(layer).__name__
        if kind in _MIRRORED_UNKNOWN:
            raise ModelError(
                f"{source.path}: was trained on Theano, whose kernels are mirrored, and holds a {kind}; "
                "expected Conv2D and Conv2DTranspose alone: save it from Keras on TensorFlow"
            )
        if kind in _MIRRORED:
            kernel, *bias = layer.get_weights()
            layer.set_weights([np.ascontiguousarray(kernel[::-1, ::-1]), *bias])
    return ("the kernels were turned around: the file was trained on Theano",)


def iter_layers(model: Any) -> Iterator[Any]:
    """Yield the layers of a model and of the models in it."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from iter_layers(layer)
        else:
            yield layer


def _has_class(module: str | None, name: str) -> bool:
    import tf_keras

    if module is not None and module.partition(".")[0] not in ("keras", "tf_keras"):
        return False
    if name in _MODELS or name in _OP_LAYERS:
        return True
    if name in _REFUSED_LAYERS:
        return False
    places = (tf_keras.layers, tf_keras.initializers, tf_keras.regularizers, tf_keras.constraints)
    found = next((getattr(place, name) for place in places if hasattr(place, name)), None)
    kinds = (
        tf_keras.layers.Layer, tf_keras.initializers.Initializer, tf_keras.regularizers.Regularizer,
        tf_keras.constraints.Constraint,
    )  # fmt: skip
    return inspect.isclass(found) and issubclass(found, kinds)


def _has_activation(name: str) -> bool:
    import tf_keras

    try:
        return name not in ("deserialize", "get", "serialize") and callable(tf_keras.activations.get(name))
    except (ValueError, TypeError):
        return False


VOCABULARY = Vocabulary(_has_class, _has_activation)
