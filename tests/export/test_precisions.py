"""One export, several precisions: each proven, each with its card; all files appear, or none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from histoseg.errors import OptionError, ParityError
from histoseg.session import open_session
from histoseg_export.describe import ExportOptions
from histoseg_export.export import export_model
from histoseg_export.gates import Gates
from histoseg_export.proofoptions import ProofOptions
from histoseg_export.report import report_path

OPTIONS = ExportOptions(tile=64, spacing_um_px=0.5)
FILES = ["model.fp16.onnx", "model.int8.onnx", "model.onnx", "model.report.json"]


@pytest.fixture(scope="module")
def everything(keras_files, shared_data, tmp_path_factory):
    """An export of a tiny U-Net in all precisions."""
    target = tmp_path_factory.mktemp("precisions") / "model.onnx"
    # three filters: int8 may turn more labels than in a network of a useful size
    gates = Gates(int8_labels=0.9, int8_dice_drop=0.1)
    proof = ProofOptions(("fp32", "fp16", "int8"), gates, calibrate=shared_data / "tnbc")
    return export_model(keras_files["softmax"], target, OPTIONS, proof=proof)


def test_each_precision_has_its_file_and_its_card(everything, noise):
    assert sorted(path.name for path in everything.target.parent.iterdir()) == FILES
    labels = {}
    for precision in ("fp32", "int8"):  # fp16 is not for the CPU
        with open_session(everything.files[precision], provider="cpu") as session:
            assert session.card.precision == precision
            assert session.card.parity["gate"]["precision"] == precision
            assert session.card.parity["passed"]
            labels[precision] = session.run(noise).argmax(-1)
    assert (labels["fp32"] == labels["int8"]).mean() > 0.9
    assert len({variant.card.tiling for variant in everything.variants}) == 1


def test_the_report_describes_every_precision(everything):
    report = json.loads(report_path(everything.target).read_text())
    models = report["models"]
    assert report["passed"] is True
    assert [entry["precision"] for entry in models] == ["fp32", "fp16", "int8"]
    assert [entry["file"] for entry in models] == ["model.onnx", "model.fp16.onnx", "model.int8.onnx"]
    assert "tnbc: 33 images with masks" in models[2]["quantization"]["calibration"]
    assert models[1]["quantization"] is None
    assert all(entry["parity"]["dice_judged_against"] == "truth masks" for entry in models)


def test_a_failed_gate_leaves_the_report_and_no_file(keras_files, shared_data, tmp_path):
    target = tmp_path / "model.onnx"
    gates = Gates(int8_labels=1.0, int8_dice_drop=0)
    proof = ProofOptions(("fp32", "int8"), gates, calibrate=shared_data / "tnbc", float_layers=1)
    with pytest.raises(ParityError, match=r"int8 ONNX file does not behave like softmax.*--int8-labels"):
        export_model(keras_files["softmax"], target, OPTIONS, proof=proof)
    assert [path.name for path in tmp_path.iterdir()] == ["model.report.json"]
    report = json.loads(report_path(target).read_text())
    assert report["passed"] is False
    assert [entry["file"] for entry in report["models"]] == [None, None]
    assert [entry["parity"]["passed"] for entry in report["models"]] == [True, False]
    assert len(report["models"][1]["quantization"]["float_layers"]) == 1
    assert len(report["models"][1]["quantization"]["layer_errors"]) > 1


def test_fp32_is_proven_even_where_only_int8_is_wanted(keras_files, shared_data, tmp_path):
    proof = ProofOptions(("int8",), Gates(int8_labels=0, int8_dice_drop=1), calibrate=shared_data / "tnbc")
    result = export_model(keras_files["softmax"], tmp_path / "model.onnx", OPTIONS, proof=proof)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.int8.onnx", "model.report.json"]
    assert [parity.gate.precision for parity in result.parities] == ["fp32", "int8"]
    assert np.isfinite(result.parities[1].mean_abs)


def test_options_that_cannot_be_met_are_refused():
    with pytest.raises(OptionError, match="--calibrate"):
        ProofOptions(("int8",))
    with pytest.raises(OptionError, match="--precision has 'bf16', expected some of fp32, fp16, int8"):
        ProofOptions(("bf16",))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="--precision is empty"):
        ProofOptions(())
