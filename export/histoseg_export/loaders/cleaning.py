"""Rewrite a network's configuration, as data, into one that only inference needs and Keras still reads.

Initializers, regularizers and constraints go: the weights are in the file, and old ones carry arguments
that Keras no longer takes. Half precision is raised to float32, which holds such weights exactly.
What Keras does not know is replaced by what the caller's own file calls by the same name.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from histoseg.errors import ModelError
from histoseg_export.loaders.source import CannotReadError, Source, extract_weights
from histoseg_export.loaders.userfile import to_identifier
from histoseg_train.kerasfile import ACTIVATION_KEYS, CODE_LAYERS, Vocabulary, holds_code, layer_name

_TRAINING_KEYS = ("_initializer", "_regularizer", "_constraint")
# as tf.keras of TensorFlow 1.13 to 2.0 called it
_OLD_NAMES = dict.fromkeys(("BatchNormalizationV1", "BatchNormalizationV2"), "BatchNormalization")
# what `tf.nn.softmax` is called inside
_TENSORFLOW_NAMES = {"softmax_v2": "softmax"}
_OTHER_PRECISIONS = frozenset({"bfloat16", "float16", "float64", "mixed_bfloat16", "mixed_float16"})

MakeLayer = Callable[[str, Callable[..., Any], dict[str, Any]], type]
"""Told a name, a function and its keyword arguments: a layer class, of one generation, that calls it."""


@dataclass
class Cleaned:
    """A configuration, and what it needs of the caller's file."""

    config: dict[str, Any]
    custom_objects: dict[str, Any] = field(default_factory=dict)
    precisions: set[str] = field(default_factory=set)
    """What layers computed in, where that was not float32."""


@dataclass(frozen=True)
class Cleaner:
    """Knows one generation of Keras and the caller's file."""

    vocabulary: Vocabulary
    names: dict[str, Any]
    """What the caller's file holds."""
    make_layer: MakeLayer
    bare_functions: bool
    """Whether a function is named by its name alone, as HDF5 files of Keras 2 do, or described at length."""

    def clean(self, config: dict[str, Any]) -> Cleaned:
        """Return a configuration to load in place of `config`."""
        cleaned = Cleaned({})
        cleaned.config = self._walk(config, cleaned)
        return cleaned

    def _walk(self, value: Any, cleaned: Cleaned) -> Any:
        if isinstance(value, list):
            return [self._walk(item, cleaned) for item in value]
        if not isinstance(value, dict):
            return value
        if set(value) == {"type", "value"} and value["type"] == "ndarray":
            return value["value"]  # so Keras 2.2 of TensorFlow 1 wrote the slope of a LeakyReLU
        if isinstance(value.get("class_name"), str):
            value = self._clean_object(value, cleaned)
        items = {key: item for key, item in value.items() if key != "compile_config"}
        for key in ACTIVATION_KEYS:
            if key in items:
                items[key] = self._clean_activation(items, items[key], cleaned)
        if "dtype" in items:
            items["dtype"] = _unify_precision(items["dtype"], cleaned)
        return {key: self._walk(item, cleaned) for key, item in items.items()}

    def _clean_object(self, item: dict[str, Any], cleaned: Cleaned) -> dict[str, Any]:
        if item["class_name"] not in self.names:
            item = {**item, "class_name": _OLD_NAMES.get(item["class_name"], item["class_name"])}
        name, module, config = item["class_name"], item.get("module"), item.get("config")
        bare = name.rpartition(">")[2]  # Keras 2 writes package>name
        if name in CODE_LAYERS:
            return self._replace_code(item, cleaned)
        if name == "function":
            return item
        if self.vocabulary.has_class(module, name):
            return {**item, "config": _drop_training(config)} if isinstance(config, dict) else item
        if bare in self.names:
            cleaned.custom_objects[bare] = self.names[bare]
            return {**item, "class_name": bare, "registered_name": bare, "module": None}
        return item

    def _replace_code(self, item: dict[str, Any], cleaned: Cleaned) -> dict[str, Any]:
        """Put the caller's layer in place of one that holds Python code; what it holds is not looked at."""
        name = layer_name(item)
        chosen = None if name is None else self.names.get(to_identifier(name))
        if name is None or chosen is None:
            return item
        if not isinstance(chosen, type):
            arguments = item["config"].get("arguments") or {}
            chosen = self.make_layer(f"Replaced_{to_identifier(name)}", chosen, arguments)
        cleaned.custom_objects[chosen.__name__] = chosen
        names = {"class_name": chosen.__name__, "registered_name": chosen.__name__, "module": None}
        kept = {key: _drop_mask(value) for key, value in item.items() if key != "build_config"}
        return {**kept, **names, "config": {"name": name}}

    def _replace_activation(self, config: dict[str, Any], code: Any, cleaned: Cleaned) -> Any:
        """Name the caller's function in place of a layer's Python activation; it has the layer's name."""
        identifier = to_identifier(str(config.get("name")))
        chosen = self.names.get(identifier)
        if chosen is None:
            return code
        name = f"replaced_{identifier}"
        cleaned.custom_objects[name] = chosen
        return {"module": "builtins", "class_name": "function", "config": name, "registered_name": "function"}

    def _clean_activation(self, config: dict[str, Any], activation: Any, cleaned: Cleaned) -> Any:
        if holds_code(activation):
            activation = self._replace_activation(config, activation, cleaned)
        activation = _rename_function(activation)
        name = _bare_name(activation)
        if isinstance(name, str) and name in self.names and not self.vocabulary.has_activation(name):
            cleaned.custom_objects[name] = self.names[name]
        return name if self.bare_functions else activation


def refuse_other_generation(cleaned: Cleaned, layer_class: type, reader: str, wanted: str) -> None:
    """Refuse a layer of the caller's that belongs to the other generation of Keras.

    Args:
        cleaned: With the caller's objects.
        layer_class: The other generation's `Layer`.
        reader: Who reads the file.
        wanted: The module that the caller's layers have to be made from.

    Raises:
        CannotReadError: The message names the class.
    """
    for name, chosen in cleaned.custom_objects.items():
        if isinstance(chosen, type) and issubclass(chosen, layer_class):
            raise CannotReadError(
                reader, f"class '{name}' is a layer of another Keras, expected one of {wanted}"
            )


def extend_vocabulary(vocabulary: Vocabulary, custom_objects: dict[str, Any]) -> Vocabulary:
    """Return a vocabulary that knows the caller's objects, too."""
    return Vocabulary(
        lambda module, name: (
            (module is None and name in custom_objects) or vocabulary.has_class(module, name)
        ),
        lambda name: name in custom_objects or vocabulary.has_activation(name),
    )


def note_precision(cleaned: Cleaned) -> tuple[str, ...]:
    """Say what layers computed in, where that was not float32."""
    if not cleaned.precisions:
        return ()
    words = ", ".join(sorted(cleaned.precisions))
    return (f"the file's layers compute in {words}: exported, and proven, in float32",)


def write_cleaned(source: Source, config: dict[str, Any], folder: Path) -> Path:
    """Write a whole-model file of the source's kind: its weights, another configuration, and nothing else.

    Raises:
        ModelError: The file holds no weights, or is damaged.
    """
    if source.kind == "h5":
        return _write_h5(source, config, folder / "model.h5")
    path, weights = folder / "model.keras", extract_weights(source.path, folder / "model.weights.h5")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": source.keras_version}))
        archive.write(weights, weights.name)
    return path


def _write_h5(source: Source, config: dict[str, Any], path: Path) -> Path:
    import h5py

    with h5py.File(source.path, "r") as old, h5py.File(path, "w") as new:
        if "model_weights" not in old:
            raise ModelError(
                f"{source.path}: holds a network without its weights; expected the file that model.save wrote"
            )
        try:
            old.copy("model_weights", new)
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{source.path}: is a damaged or truncated HDF5 file ({error})") from error
        for key in ("backend", "keras_version"):
            if key in old.attrs:
                new.attrs[key] = old.attrs[key]
        new.attrs["model_config"] = json.dumps(config)
    return path


def _bare_name(activation: Any) -> Any:
    """Return the name alone of a function described at length, which readers of HDF5 do not expect."""
    if isinstance(activation, dict) and activation.get("class_name") == "function":
        name = activation.get("config")
        return (
            name if activation.get("module") in (None, "builtins") and isinstance(name, str) else activation
        )
    return activation


def _rename_function(activation: Any) -> Any:
    """Return Keras's name of a function of TensorFlow that calls itself by another."""
    if isinstance(activation, dict) and activation.get("class_name") == "function":
        return {**activation, "config": _rename_function(activation.get("config"))}
    return _TENSORFLOW_NAMES.get(activation, activation) if isinstance(activation, str) else activation


def _drop_mask(value: Any) -> Any:
    """Return a call without the empty mask that Lambda layers are given, and others need not take."""
    if isinstance(value, list):
        return [_drop_mask(item) for item in value]
    if isinstance(value, dict):
        return {key: _drop_mask(item) for key, item in value.items() if (key, item) != ("mask", None)}
    return value


def _drop_training(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.endswith(_TRAINING_KEYS)}


def _unify_precision(dtype: Any, cleaned: Cleaned) -> Any:
    """Return float32 for another precision, and for a policy that says float32 at length."""
    name = dtype
    if isinstance(dtype, dict):
        inner = dtype.get("config")
        name = inner.get("name") if isinstance(inner, dict) else None
    if name in _OTHER_PRECISIONS:
        cleaned.precisions.add(str(name))
        return "float32"
    return "float32" if name == "float32" else dtype
