"""Tell by its first bytes what a file is: a Keras model, or what it is instead.

A suffix is a promise; downloads, renamed files and pointers break it. Importing this module loads nothing.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from histoseg.errors import ModelError

FileKind = Literal["keras", "h5"]

LFS_MAGIC = b"version https://git-lfs"
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
ZIP_MAGIC = b"PK\x03\x04"
HEAD_BYTES = 512

KEEP_KERAS = "save the model as .keras in the program that made it"


@dataclass(frozen=True)
class Stranger:
    """A kind of file that is taken for a Keras model."""

    words: str
    """What it is, after `is`."""
    remedy: str
    matches: Callable[[bytes, str], bool]
    """Told the first `HEAD_BYTES` and the file's name in lower case."""


def detect_kind(path: Path) -> FileKind:
    """Tell by its first bytes which kind of Keras file this is.

    Raises:
        ModelError: The file is missing, a folder, or of another kind; the message says which.
    """
    head = _read_head(path)
    if head.startswith(HDF5_MAGIC):
        return "h5"
    if head.startswith(ZIP_MAGIC):
        _refuse_foreign_archive(path)
        return "keras"
    for stranger in STRANGERS:
        if stranger.matches(head, path.name.lower()):
            raise ModelError(f"{path}: is {stranger.words}; {stranger.remedy}")
    raise ModelError(
        f"{path}: is neither a .keras archive nor an HDF5 file; expected a model that Keras saved"
    )


def _read_head(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError(
            f"{path}: is a folder, expected a .keras or .h5 file; save the model again as .keras"
        )
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error


def _refuse_foreign_archive(path: Path) -> None:
    """Refuse a zip file whose members belong to another program."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ModelError(
            f"{path}: is a damaged or truncated .keras archive ({error}); fetch it again"
        ) from error
    if "config.json" in names:
        return
    for ending, words, remedy in _ARCHIVES:
        found = next((name for name in names if name.endswith(ending)), None)
        if found:
            raise ModelError(f"{path}: is {words} (it holds {found}); {remedy}")
    raise ModelError(f"{path}: is a zip file without config.json; expected a model that Keras saved")


def _starts(*magics: bytes) -> Callable[[bytes, str], bool]:
    return lambda head, name: head.startswith(magics)


def _is_text(*words: bytes) -> Callable[[bytes, str], bool]:
    return lambda head, name: head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(words)


def _is_onnx(head: bytes, name: str) -> bool:
    """Tell an ONNX model: field 1, its IR version, is 3 or more, and a string or the graph follows."""
    return (
        head[:1] == b"\x08" and head[1:2] >= b"\x03" and head[1:2] < b"\x20" and head[2:3] in b"\x12\x1a\x3a"
    )


def _is_checkpoint(head: bytes, name: str) -> bool:
    return name == "checkpoint" or name.endswith(".index") or ".data-0" in name


_ARCHIVES = (
    ("data.pkl", "a PyTorch model", "expected a model that Keras saved"),
    (".npy", "a NumPy archive", "expected a model that Keras saved"),
    ("saved_model.pb", "a zip file of a SavedModel", "unpack it, and give the folder"),
    ("model.weights.h5", "a .keras archive without its network", KEEP_KERAS),
    (".h5", "a zip file of a model", "unpack it, and give the file in it"),
    (".hdf5", "a zip file of a model", "unpack it, and give the file in it"),
    (".keras", "a zip file of a model", "unpack it, and give the file in it"),
)

STRANGERS = (
    Stranger("an empty file", "fetch or save it again", lambda head, name: not head),
    Stranger("a Git-LFS pointer, not the model itself", "fetch it with 'git lfs pull'", _starts(LFS_MAGIC)),
    Stranger(
        "a web page, not the model itself",
        "download the file behind it",
        _is_text(b"<!doctype", b"<html", b"<?xml"),
    ),
    Stranger(
        "JSON, a network without its weights", "expected the file that model.save wrote", _is_text(b"{", b"[")
    ),
    Stranger(
        "a TensorFlow Lite model, whose weights may be quantised already",
        "give the Keras model it was made from",
        lambda head, name: head[4:8] == b"TFL3",
    ),
    Stranger(
        "a PyTorch or pickle file, which would run code",
        "expected a model that Keras saved",
        _starts(*(b"\x80" + bytes([version]) for version in (2, 3, 4, 5))),
    ),
    Stranger(
        "part of a TensorFlow checkpoint, which holds weights only",
        "load it into its network, and save that with model.save('model.keras')",
        _is_checkpoint,
    ),
    Stranger("an ONNX model already", "run it with histoseg-run, described by --card", _is_onnx),
    Stranger(
        "the graph of a SavedModel",
        "give the folder it lies in",
        lambda head, name: name == "saved_model.pb" or head.startswith(b"\x08\x01\x12"),
    ),
    Stranger(
        "a frozen TensorFlow graph",
        f"{KEEP_KERAS}, or as a SavedModel",
        lambda head, name: head[:1] == b"\x0a" and name.endswith((".pb", ".pbtxt")),
    ),
    Stranger("a NumPy array", "expected a model that Keras saved", _starts(b"\x93NUMPY")),
    Stranger(
        "compressed",
        "unpack it first",
        _starts(b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd"),
    ),
    Stranger("a tar archive", "unpack it first", lambda head, name: head[257:262] == b"ustar"),
)
