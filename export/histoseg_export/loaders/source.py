"""What a model file says of itself, read as data: its kind, its network, and who saved it."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from histoseg.errors import ModelError
from histoseg_train.filekind import LFS_MAGIC, detect_kind
from histoseg_train.kerasfile import (
    parse_config,
    read_h5_text,
    read_keras_config,
    refuse_links,
    summarize_error,
)

# arguments of layers that Keras 2 renamed
_KERAS_1_WORDS = ("border_mode", "nb_filter", "nb_row")

SourceKind = Literal["keras", "h5", "savedmodel"]


@dataclass(frozen=True)
class LoadOptions:
    """What the caller says about a file that does not say it itself."""

    output: str | None = None
    """Which of several outputs, or which layer, gives the segmentation."""
    signature: str | None = None
    """Which function of a SavedModel."""
    architecture: str | None = None
    """Name of one of this project's networks, for a file of weights."""
    builder: str | None = None
    """`FILE.py:FUNCTION`: builds the network that a file of weights belongs to."""
    custom_objects: Path | None = None
    """A Python file whose names stand for what a model file names and Keras does not know."""
    input_size: tuple[int, int] | None = None
    """Width and height a builder is told."""


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights."""

    model: Any
    """A `keras.Model` or `tf_keras.Model`."""
    reader: str
    """What read it, such as `tf_keras 2.21.0`."""
    notes: tuple[str, ...] = ()
    """What a person should know about how it was read, in sentences."""


class CannotReadError(ModelError):
    """One reader gave up on a file; another may not."""

    def __init__(self, reader: str, reason: str) -> None:
        """Say who gave up, and why."""
        super().__init__(f"{reader} cannot load it ({reason})")


@dataclass(frozen=True)
class Source:
    """A model file, looked into but not loaded."""

    path: Path
    kind: SourceKind
    config: dict[str, Any] | None
    """The network; `None` in a file of weights, and in a SavedModel."""
    keras_version: str
    """As the file states it; empty where it does not."""

    @property
    def generation(self) -> int | None:
        """Return the first number of the version of Keras that saved the file, as it states or writes it."""
        found = re.match(r"\d+", self.keras_version)
        if found or self.config is None:
            return int(found.group()) if found else None
        text = json.dumps(self.config)
        if any(f'"{word}"' in text for word in _KERAS_1_WORDS):
            return 1
        return 3 if '"batch_shape"' in text else 2  # before Keras 3: batch_input_shape

    @property
    def saved_by(self) -> str:
        """Return who saved the file, in words."""
        if self.keras_version:
            return f"Keras {self.keras_version}"
        return "Keras 1" if self.generation == 1 else "an unknown version of Keras"


def read_source(path: Path) -> Source:
    """Look into a model file.

    Raises:
        ModelError: The file is missing, damaged, or no model that Keras saved; the message says what it is.
    """
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            names = sorted(item.name for item in path.iterdir())
            if {"config.json", "model.weights.h5"} <= set(names):
                raise ModelError(
                    f"{path}: is an unpacked .keras archive; pack its files into a zip file, and give that"
                )
            members = ", ".join(names[:4]) or "nothing"
            raise ModelError(
                f"{path}: is a folder without saved_model.pb (it holds {members}), "
                "expected a SavedModel, or a .keras or .h5 file"
            )
        _refuse_pointers(path)
        return Source(path, "savedmodel", None, "")
    if detect_kind(path) == "keras":
        return Source(path, "keras", read_keras_config(path), _read_archive_version(path))
    text, version = read_h5_text(path)
    return Source(path, "h5", None if text is None else parse_config(path, text), version)


def _refuse_pointers(path: Path) -> None:
    """Refuse a SavedModel of which Git fetched only the names of its large files."""
    for file in (path / "saved_model.pb", *sorted((path / "variables").glob("variables.*"))):
        with file.open("rb") as content:
            if content.read(len(LFS_MAGIC)) == LFS_MAGIC:
                raise ModelError(
                    f"{path}: its {file.relative_to(path)} is a Git-LFS pointer, not the file itself; "
                    "fetch it with 'git lfs pull'"
                )


def extract_weights(path: Path, target: Path) -> Path:
    """Copy the weights out of a `.keras` archive.

    Raises:
        ModelError: There are none, they refer to other files, or the archive is damaged.
    """
    import h5py

    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open("model.weights.h5") as weights,
            target.open("wb") as copy,
        ):
            shutil.copyfileobj(weights, copy)
        with h5py.File(target, "r") as file:
            refuse_links(path, file)
    except KeyError:
        raise ModelError(f"{path}: holds a network without its weights; save the model again") from None
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        raise ModelError(
            f"{path}: is a damaged or truncated .keras archive ({summarize_error(error)}); fetch it again"
        ) from error
    return target


def advise_newer(source: Source) -> str:
    """Return what to do about a file that a later Keras than the one here saved; nothing for others."""
    import keras

    saved, here = (
        tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        for version in (source.keras_version, keras.__version__)
    )
    return f"; the file is newer than Keras {keras.__version__}: install keras>={source.keras_version}" * (
        saved > here
    )


def _read_archive_version(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (KeyError, ValueError, TypeError):
        return ""
