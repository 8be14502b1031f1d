"""Load a Keras file, or refuse it in one line that names the reason. Code from a model file never runs.

The file is read as data first: its kind, and its layers' configuration. Keras sees only what passed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from histoseg.errors import ModelError
from histoseg_export.quiet import import_tensorflow

FileKind = Literal["keras", "h5"]

LFS_MAGIC = b"version https://git-lfs"
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"

# layers whose content is a program or another file
_CODE_LAYERS = frozenset({"Lambda", "TFSMLayer", "TorchModuleWrapper", "__lambda__"})
_KNOWN_MODULES = ("builtins", "histoseg_train", "keras", "tensorflow.python.keras", "tf_keras")


def load_model(path: Path) -> Any:
    """Load a whole Keras model for inference.

    Args:
        path: A `.keras` archive or a whole-model HDF5 file.

    Returns:
        The `keras.Model`, one 4-D channels-last input and one 4-D output.

    Raises:
        ModelError: The file is missing, truncated, no Keras model, weights only, holds Python code or foreign
            classes, or is no segmentation model; the message names which.
    """
    kind = detect_kind(path)
    config = read_keras_config(path) if kind == "keras" else read_h5_config(path)
    refuse_code(path, config)
    import_tensorflow()
    model = _load_checked(path, kind)
    check_segmentation(path, model)
    return _flatten_interface(model)


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
            f"{path}: is a damaged or truncated HDF5 file of {size} bytes ({_short(error)})"
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


def check_segmentation(path: Path, model: Any) -> None:
    """Refuse a model that does not map one image to one map.

    Raises:
        ModelError: The inputs or outputs are not one 4-D tensor each, or the input has not 1 or 3 channels.
    """
    for word, tensors in (("input", model.inputs), ("output", model.outputs)):
        if len(tensors) != 1:
            names = ", ".join(tensor.name for tensor in tensors)
            raise ModelError(f"{path}: has {len(tensors)} {word}s ({names}), expected one")
        shape = tuple(tensors[0].shape)
        if len(shape) != 4:
            raise ModelError(
                f"{path}: its {word} has shape {_words(shape)}, expected (batch, height, width, channels): "
                "not a segmentation model"
            )
    channels = model.inputs[0].shape[3]
    if channels not in (1, 3):
        raise ModelError(
            f"{path}: its input has shape {_words(model.inputs[0].shape)}, expected channels last, "
            "3 of them (RGB) or 1 (grey)"
        )
    if model.outputs[0].shape[3] is None:
        raise ModelError(f"{path}: its output has an unknown number of channels, expected one for each class")


def _load_checked(path: Path, kind: FileKind) -> Any:
    import keras

    with tempfile.TemporaryDirectory() as folder:
        readable = path
        if path.suffix.lower() not in {"keras": (".keras",), "h5": (".h5", ".hdf5")}[kind]:
            readable = Path(folder) / f"model.{kind}"  # Keras goes by the suffix
            shutil.copyfile(path, readable)
        try:
            return keras.saving.load_model(readable, compile=False, safe_mode=True)
        except Exception as error:  # Keras lets any exception of a layer through
            raise ModelError(
                f"{path}: saved by Keras {_read_version(path, kind)}, which Keras {keras.__version__} "
                f"cannot load ({_short(error)})"
            ) from error


def _flatten_interface(model: Any) -> Any:
    """Return the model with one tensor in and one out, where Keras may want lists or dictionaries of one."""
    import keras

    return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


def _read_version(path: Path, kind: FileKind) -> str:
    import h5py

    if kind == "h5":
        with h5py.File(path, "r") as file:
            version = file.attrs.get("keras_version", "(unknown version)")
        return version.decode() if isinstance(version, bytes) else str(version)
    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (KeyError, ValueError):
        return "(unknown version)"


def _parse_config(path: Path, text: str | bytes) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{path}: its configuration is not JSON ({error}); the file is damaged") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: its configuration is not a Keras model's")
    # a training configuration may name losses that are not Keras's; compile=False never reads it
    return {key: value for key, value in config.items() if key != "compile_config"}


def _iter_code(config: Any, layer: str = "?") -> Iterator[str]:
    """Yield the names of layers that hold code, wherever they are nested."""
    if isinstance(config, dict):
        layer = _layer_name(config) or layer
        if config.get("class_name") in _CODE_LAYERS:
            yield f"{layer!r} ({config['class_name'].strip('_')})"
            return
        for value in config.values():
            yield from _iter_code(value, layer)
    elif isinstance(config, list):
        for value in config:
            yield from _iter_code(value, layer)


def _iter_foreign(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        module = config.get("module")
        if isinstance(module, str) and "class_name" in config and not _is_known(module):
            yield f"{module}.{config['class_name']}"
        for value in config.values():
            yield from _iter_foreign(value)
    elif isinstance(config, list):
        for value in config:
            yield from _iter_foreign(value)


def _is_known(module: str) -> bool:
    return any(module == known or module.startswith(f"{known}.") for known in _KNOWN_MODULES)


def _layer_name(config: dict[str, Any]) -> str | None:
    inner = config.get("config")
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


def _words(shape: Any) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


def _short(error: BaseException) -> str:
    """Return the first sentence of a message, on one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 160 else words[:157] + "..."
