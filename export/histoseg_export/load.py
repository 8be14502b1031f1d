"""Load a Keras file, or refuse it in one line that names the reason. Code from a model file never runs.

The file is read as data first: its kind, and its layers' configuration. Keras sees only what passed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from histoseg.errors import ModelError
from histoseg_export.quiet import import_tensorflow
from histoseg_train.kerasfile import FileKind, check_file, summarize_error


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
    import_tensorflow()
    kind = check_file(path)
    model = _load_checked(path, kind)
    check_segmentation(path, model)
    return _flatten_interface(model)


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
                f"cannot load ({summarize_error(error)})"
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


def _words(shape: Any) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
