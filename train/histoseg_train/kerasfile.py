"""Look into a Keras file as data, and refuse what would run code, before Keras sees it.

A `.keras` archive and an HDF5 file both hold a JSON configuration that names the classes to build. Keras's
own safe mode has let functions and Lambda bytecode through in several releases, so nothing is left to it:
only Keras's own layers, operations, initializers, regularizers, constraints and policies pass.
"""

from __future__ import annotations

import importlib
import inspect
import json
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from histoseg.errors import ModelError

FileKind = Literal["keras", "h5"]

LFS_MAGIC = b"version https://git-lfs"
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"

# layers whose content is a program or another file
_CODE_LAYERS = frozenset({"Lambda", "TFSMLayer", "TorchModuleWrapper", "__lambda__"})
_MODULE_ROOTS = ("histoseg_train", "keras", "tensorflow.python.keras", "tf_keras")
# where Keras 3 keeps what a configuration may name; older files name modules that are gone
_NAMESPACES = ("layers", "models", "initializers", "regularizers", "constraints", "dtype_policies")
_MODELS = frozenset({"Functional", "Model", "Sequential"})


def check_file(path: Path) -> FileKind:
    """Refuse a file that is no whole Keras model, or would run code when it is loaded.

    Returns:
        Which kind of file it is.

    Raises:
        ModelError: The message names the reason.
    """
    kind = detect_kind(path)
    refuse_code(path, read_keras_config(path) if kind == "keras" else read_h5_config(path))
    return kind


def detect_kind(path: Path) -> FileKind:
    """Tell by its first bytes which kind of Keras file this is.

    Raises:
        ModelError: The file is missing, a folder, a Git-LFS pointer, or of another kind.
    """
    if path.is_dir():
        raise ModelError(
            f"{path}: is a folder, expected a .keras or .h5 file; save the model again as .keras"
        )
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS_MAGIC))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    if head.startswith(LFS_MAGIC):
        raise ModelError(f"{path}: is a Git-LFS pointer, not the model itself; fetch it with 'git lfs pull'")
    if head.startswith(ZIP_MAGIC):
        return "keras"
    if head.startswith(HDF5_MAGIC):
        return "h5"
    raise ModelError(
        f"{path}: is neither a .keras archive nor an HDF5 file; expected a model that Keras saved"
    )


def read_keras_config(path: Path) -> dict[str, Any]:
    """Return the configuration inside a `.keras` archive.

    Raises:
        ModelError: The archive is damaged, holds weights only, or is no Keras model.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "config.json" not in names:
                raise ModelError(f"{path}: holds no config.json; expected a whole model that Keras saved")
            return _parse_config(path, archive.read("config.json"))
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ModelError(f"{path}: is a damaged or truncated .keras archive ({error})") from error


def read_h5_config(path: Path) -> dict[str, Any]:
    """Return the configuration inside a whole-model HDF5 file.

    Raises:
        ModelError: The file is truncated, or holds weights only.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
            groups = len(file)
    except (OSError, RuntimeError) as error:
        size = path.stat().st_size
        raise ModelError(
            f"{path}: is a damaged or truncated HDF5 file of {size} bytes ({summarize_error(error)})"
        ) from error
    if text is None and groups:
        raise ModelError(
            f"{path}: holds weights only, without the network; expected a whole model: "
            "build the network, load these weights, and save it with model.save('model.keras')"
        )
    if text is None:
        raise ModelError(f"{path}: is an HDF5 file without a Keras model")
    return _parse_config(path, text)


def refuse_code(path: Path, config: dict[str, Any]) -> None:
    """Refuse a configuration that holds Python code, or names classes that are not Keras's own.

    Keras's own safe mode does not cover HDF5 files, so nothing is left to it.

    Raises:
        ModelError: The message names the layers.
    """
    code = list(dict.fromkeys(_iter_code(config)))
    if code:
        raise ModelError(
            f"{path}: {'layer' if len(code) == 1 else 'layers'} {', '.join(code)} would run Python code from "
            "the file, which is never executed; "
            "replace each by Keras layers or keras.ops and save the model again"
        )
    foreign = list(dict.fromkeys(_iter_foreign(config)))
    if foreign:
        raise ModelError(f"{path}: needs {', '.join(foreign)}, not part of Keras; expected Keras layers only")


def _parse_config(path: Path, text: str | bytes) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its configuration is not JSON ({error}); the file is damaged") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: its configuration is not a Keras model's")
    # a training configuration may name losses that are not Keras's; compile=False never reads it
    return {key: value for key, value in config.items() if key != "compile_config"}


def _iter_code(config: Any, layer: str = "?") -> Iterator[str]:
    """Yield the names of layers that hold code, wherever they are nested."""
    if isinstance(config, dict):
        layer = _layer_name(config) or layer
        name = config.get("class_name")
        if isinstance(name, str) and name in _CODE_LAYERS:
            yield f"{layer!r} ({name.strip('_')})"
            return
        for value in config.values():
            yield from _iter_code(value, layer)
    elif isinstance(config, list):
        for value in config:
            yield from _iter_code(value, layer)


def _iter_foreign(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        module = config.get("module")
        name = config.get("class_name")
        if isinstance(module, str) and "class_name" in config and not _is_known(module, name):
            if module == "builtins" and _is_activation(config):
                return
            yield f"{module}.{name}"
        for value in config.values():
            yield from _iter_foreign(value)
    elif isinstance(config, list):
        for value in config:
            yield from _iter_foreign(value)


def _is_known(module: str, name: Any) -> bool:
    """Tell whether a configuration names a class that Keras builds from plain values."""
    if not isinstance(name, str) or not any(module == r or module.startswith(f"{r}.") for r in _MODULE_ROOTS):
        return False
    if name in _MODELS:
        return True
    import keras

    places = [getattr(keras, space, None) for space in _NAMESPACES]
    if module.startswith("keras"):
        with suppress(ImportError):  # a module of an older Keras: its class has to be among today's
            places.append(importlib.import_module(module))
    return any(_is_plain_class(getattr(place, name, None)) for place in places)


def _is_plain_class(found: Any) -> bool:
    import keras

    policies = (keras.dtype_policies.DTypePolicy, keras.dtype_policies.DTypePolicyMap)
    kinds = (keras.Operation, keras.Initializer, keras.regularizers.Regularizer, keras.constraints.Constraint)
    return inspect.isclass(found) and issubclass(found, kinds + policies)


def _is_activation(config: dict[str, Any]) -> bool:
    """Tell whether a serialised function is one of Keras's activations."""
    import keras

    name = config.get("config")
    return (
        config.get("class_name") == "function" and isinstance(name, str) and hasattr(keras.activations, name)
    )


def _layer_name(config: dict[str, Any]) -> str | None:
    inner = config.get("config")
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


def summarize_error(error: BaseException) -> str:
    """Return the first sentence of a message, on one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 160 else words[:157] + "..."
