from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.errors import ModelError
from histoseg_train.filekind import HDF5_MAGIC, ZIP_MAGIC, detect_kind


def zipped(*names: str) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return memory.getvalue()


def packed_array() -> bytes:
    memory = io.BytesIO()
    np.savez(memory, a=np.zeros(2))
    return memory.getvalue()


def tarred() -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.h5"))
    return memory.getvalue()


CASES = {
    "empty": (b"", "an empty file"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "Git-LFS pointer.*git lfs pull",
    ),
    "page": (b"\n <!DOCTYPE html><html>Not Found", "a web page"),
    "error page": (b'<?xml version="1.0"?><Error/>', "a web page"),
    "json": (b'{"class_name": "Model"}', "JSON, a network without its weights"),
    "tflite": (b"\x1c\x00\x00\x00TFL3\x00\x00", "a TensorFlow Lite model"),
    "pickle": (b"\x80\x04\x95\x00", "pickle file, which would run code"),
    "onnx": (b"\x08\x08\x12\x08histoseg", "an ONNX model already"),
    "saved model": (b"\x08\x01\x12\x90\x01", "the graph of a SavedModel.*give the folder"),
    "array": (b"\x93NUMPY\x01\x00", "a NumPy array"),
    "gzip": (gzip.compress(b"x"), "compressed; unpack it"),
    "tar": (tarred(), "a tar archive"),
    "torch": (zipped("archive/data.pkl", "archive/version"), "a PyTorch model"),
    "arrays": (packed_array(), "a NumPy archive"),
    "zip of h5": (zipped("models/unet.h5"), r"holds models/unet\.h5.*unpack"),
    "zip of folder": (zipped("unet/saved_model.pb"), "a zip file of a SavedModel"),
    "zip of text": (zipped("readme.txt"), "a zip file without config.json"),
    "half an archive": (zipped("config.json")[:40], "damaged or truncated"),
    "noise": (b"\xff\xfe\xfd\xfc" * 9, "neither a .keras archive nor an HDF5 file"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_strangers_are_named_for_what_they_are(name: str, suffix: str, tmp_path: Path) -> None:
    content, said = CASES[name]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        detect_kind(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [("graph.pb", "a frozen TensorFlow graph"), ("ckpt.index", "part of a TensorFlow checkpoint")],
)
def test_some_names_tell(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x0a\x17\x0a\x05image")
    with pytest.raises(ModelError, match=said):
        detect_kind(tmp_path / name)


def test_keras_files_are_known_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(zipped("config.json", "metadata.json"))
    (tmp_path / "b.txt").write_bytes(HDF5_MAGIC + b"\x00" * 99)
    assert detect_kind(tmp_path / "a.bin") == "keras"
    assert detect_kind(tmp_path / "b.txt") == "h5"


@given(st.binary(max_size=80))
def test_every_content_is_judged_in_one_line(content: bytes) -> None:
    if content.startswith((HDF5_MAGIC, ZIP_MAGIC)):
        return
    path = Path("/nonexistent")

    class File(type(path)):  # type: ignore[misc]
        def is_dir(self) -> bool:
            return False

        def open(self, *args: object) -> io.BytesIO:
            return io.BytesIO(content)

    with pytest.raises(ModelError) as caught:
        detect_kind(File("model.h5"))
    assert "\n" not in str(caught.value)
