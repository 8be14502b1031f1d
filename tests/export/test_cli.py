"""`histoseg-export` as a person meets it: files, lines, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from time import perf_counter

import pytest

from histoseg.session import open_session
from histoseg_export import cli, quiet
from histoseg_train.metadata import KerasMetadata, write_metadata

METADATA = KerasMetadata(
    architecture="unet-w3-d2",
    class_names=("background", "nucleus"),
    class_colors=("#ffffff", "#1b7f3b"),
    spacing_um_px=0.5,
    normalization="symmetric",
    patch_size_pixels=(64, 64),
)


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Return a function that runs the command in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(quiet, "prepare_environment", lambda: None)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["histoseg-export", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capsys.readouterr()

    return run


def test_file_with_metadata_needs_no_flags(keras_files, tmp_path):
    model = tmp_path / "model.keras"
    shutil.copy(keras_files["softmax"], model)
    write_metadata(model, METADATA)
    command = [sys.executable, "-m", "histoseg_export.cli", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "labels that agree" in done.stdout
    assert "note: the file" not in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"model.keras", "model.onnx", "model.report.json"}
    with open_session(tmp_path / "model.onnx", provider="cpu") as session:
        assert session.card.class_names == ("background", "nucleus")
        assert session.card.provenance["normalization"] == "symmetric"
    assert json.loads((tmp_path / "model.report.json").read_text())["models"][0]["parity"]["tiles"] == 16


def test_flags_describe_a_foreign_file(run_cli, keras_files, tmp_path):
    target = tmp_path / "out.onnx"
    code, out, err = run_cli(
        keras_files["logits"], "-o", target, "--tile", 64, "--spacing", 0.25,
        "--classes", "background,stroma=#aabbcc,tumour", "--normalize", "imagenet",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "3 classes at 0.25 um/px, tiles 64x64" in out
    with open_session(target, provider="cpu") as session:
        assert session.card.class_names == ("background", "stroma", "tumour")
        assert session.card.class_colors[1] == "#aabbcc"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["softmax", "--tile", 64], "--spacing"),
        (["softmax", "--spacing", 0.5], "--tile"),
        (["softmax", "--spacing", 0.5, "--tile", 50], "does not take tiles of 50x50"),
        (["softmax", "--spacing", 0.5, "--tile", 64, "--tiles", "nowhere"], "cannot be read as an image"),
    ],
)
def test_refusals_are_one_line(words, reason, run_cli, keras_files, tmp_path):
    code, out, err = run_cli(keras_files[words[0]], "-o", tmp_path / "m.onnx", *words[1:])
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith("histoseg-export: error: ")
    assert reason in err
    assert list(tmp_path.iterdir()) == []


def test_missing_file_and_missing_folder(run_cli, keras_files, tmp_path):
    code, _, err = run_cli(tmp_path / "none.keras")
    assert (code, err.count("\n")) == (1, 1)
    assert "no such file" in err
    code, _, err = run_cli(keras_files["softmax"], "-o", tmp_path / "none" / "m.onnx", "--spacing", 0.5)
    assert (code, err.count("\n")) == (1, 1)
    assert "does not exist" in err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--nonsense"],
        ["m.keras", "--spacing", "-1"],
        ["m.keras", "-o", "m.pb"],
        ["m.keras", "--classes", "a=red"],
        ["m.keras", "--classes", "a=#ff0000,b=#FF0000"],
        ["m.keras", "--precision", "int4"],
        ["m.keras", "--precision", "int8"],
        ["m.keras", "--fp32-labels", "2"],
    ],
)
def test_usage_errors_exit_2(words, run_cli):
    code, _, err = run_cli(*words)
    assert code == 2
    assert "Traceback" not in err


def test_help_is_fast_and_imports_nothing_heavy():
    heavy = "{'tensorflow', 'keras', 'onnx', 'onnxruntime', 'cv2', 'h5py'}"
    code = f"import sys, histoseg_export.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    start = perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "histoseg_export.cli", "--help"], capture_output=True, check=False
    )
    assert done.returncode == 0
    assert perf_counter() - start < 2  # half a second on an idle machine


def test_choices_are_those_of_the_library():
    from typing import get_args

    from histoseg.card import Activation, ColorSpace
    from histoseg.transform import NORMALIZATIONS
    from histoseg_export.gates import Gates

    assert set(cli.NORMALIZE) == set(NORMALIZATIONS)
    assert set(cli.ACTIVATIONS) == {"auto", *get_args(Activation)}
    assert set(cli.COLOR_SPACES) == set(get_args(ColorSpace))
    gates = Gates()
    assert {name: value for name, value, _ in cli.GATES} == {
        field.name: getattr(gates, field.name) for field in fields(gates) if field.name != "labels_only"
    }


def test_weights_and_lambda_layers_take_files_of_the_callers(run_cli, tmp_path, keras_files):
    import keras

    image = keras.Input((16, 16, 3))
    step = keras.layers.Lambda(lambda x: x / 255, name="lambda")(image)
    model = keras.Model(image, keras.layers.Conv2D(2, 1, activation="softmax", name="maps")(step))
    model.save(tmp_path / "model.h5")
    model.save_weights(tmp_path / "model.weights.h5")
    (tmp_path / "own.py").write_text(
        "from keras import Input, Model, layers\n"
        "def lambda_(x):\n    return x / 255\n"
        "def build(shape):\n    image = Input(shape)\n"
        "    return Model(image, layers.Conv2D(2, 1, activation='softmax')(image))\n"
    )
    target, general = tmp_path / "out.onnx", ["--spacing", 0.5, "--tile", 32, "--color-space", "sRGB"]
    code, _, err = run_cli(tmp_path / "model.h5", "-o", target, *general)
    assert code == 1
    assert "--custom-objects FILE.py" in err
    code, out, _ = run_cli(
        tmp_path / "model.h5",
        "-o",
        target,
        *general,
        "--custom-objects",
        tmp_path / "own.py",
        "--output",
        "maps",
    )
    assert code == 0
    assert "divides them by 255" in out
    with open_session(target, provider="cpu") as session:
        assert session.card.input.color_space == "sRGB"
        assert session.card.provenance["normalization"] == "none"
    code, out, _ = run_cli(
        tmp_path / "model.weights.h5", "-o", target, *general, "--builder", f"{tmp_path / 'own.py'}:build"
    )
    assert code == 0
    assert "all 2 arrays of the file are in the network" in out
