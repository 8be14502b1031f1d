"""The bundle, and the program of docs/embedding.md that knows nothing of histoseg."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from histoseg.errors import OutputError
from histoseg_export.conformance import write_bundle
from histoseg_export.describe import ExportOptions
from histoseg_export.export import export_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "conformance.py"


@pytest.fixture(scope="module")
def model(keras_files, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("model") / "model.onnx"
    export_model(keras_files["softmax"], target, ExportOptions(tile=64, spacing_um_px=0.5))
    return target


def run_example(bundle: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), str(bundle)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "bundle"
    write_bundle(model, folder, None)
    return folder


def test_a_program_without_histoseg_gets_the_same_labels(bundle: Path) -> None:
    done = run_example(bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("ok  ") == 6
    imported = {
        name.name.partition(".")[0]
        for node in ast.walk(ast.parse(EXAMPLE.read_text()))
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert "histoseg" not in imported


def test_the_result_is_worth_comparing(bundle: Path) -> None:
    document = json.loads((bundle / "conformance.json").read_text())
    shape = document["stitched"]["probabilities"]["shape"]
    values = np.fromfile(bundle / "stitched.f32", "<f4").reshape(shape)
    assert values.std() > 0.01
    assert [axis["count"] > 1 for axis in document["grid"].values()] == [True, True]
    assert {(tile["row"] > 0) for tile in document["tiles"]} == {True, False}
    for axis in document["grid"].values():
        total = np.zeros(axis["length"])
        for tile in axis["tiles"]:
            total[slice(*tile["write"])] += tile["weights"]
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_another_result_is_noticed(bundle: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for file in bundle.iterdir():
        (wrong / file.name).write_bytes(file.read_bytes())
    values = np.fromfile(wrong / "tile_1.f32", "<f4")
    values[5] += 0.01
    values.tofile(wrong / "tile_1.f32")
    done = run_example(wrong)
    assert done.returncode == 1
    assert done.stdout.count("FAIL") == 1


def test_what_is_there_is_never_replaced(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        write_bundle(model, tmp_path / "mine", None)
    with pytest.raises(OutputError, match="cannot be written"):
        write_bundle(model, Path("/proc/none/bundle"), None)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
