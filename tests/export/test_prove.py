"""The gate: what differs from Keras is refused, and leaves nothing on disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from histoseg.errors import ModelError, ParityError
from histoseg_export import export
from histoseg_export.describe import ExportOptions
from histoseg_export.prove import MAX_ABS, MIN_LABEL_AGREEMENT, Parity, require_parity

OPTIONS = ExportOptions(tile=64, spacing_um_px=0.5)
GOOD = Parity("keras", "nowhere", 1, (64, 64), 1e-6, 1e-7, 1.0, 0, ())


def _spoil_weight(model):
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    return model


def _drop_relu(model):
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Abs"
    return model


@pytest.mark.parametrize("tamper", [_spoil_weight, _drop_relu])
def test_tampered_graph_is_refused_and_leaves_nothing(tamper, keras_files, tmp_path, monkeypatch):
    honest = export.convert_model
    monkeypatch.setattr(export, "convert_model", lambda *args: tamper(honest(*args)))
    with pytest.raises(ParityError, match="does not behave like softmax"):
        export.export_model(keras_files["softmax"], tmp_path / "model.onnx", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_refusal_keeps_an_earlier_export(keras_files, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"earlier")
    honest = export.convert_model
    monkeypatch.setattr(export, "convert_model", lambda *args: _drop_relu(honest(*args)))
    with pytest.raises(ParityError):
        export.export_model(keras_files["softmax"], tmp_path / "model.onnx", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"earlier"


@pytest.mark.parametrize(
    "change",
    [
        {"max_abs": 2 * MAX_ABS},
        {"label_agreement": MIN_LABEL_AGREEMENT - 1e-6},
        {"max_abs": float("nan")},
        {"label_agreement": float("nan")},
    ],
)
def test_gate_refuses(change):
    require_parity(GOOD, "model.keras")
    with pytest.raises(ParityError, match=r"model\.keras"):
        require_parity(replace(GOOD, **change), "model.keras")


def test_parity_is_in_the_card_and_in_the_report(export_one):
    import json

    from histoseg_export.report import report_path

    result = export_one("logits")
    parity = result.card.parity
    assert parity["tiles"] >= 16
    assert parity["label_agreement"] >= MIN_LABEL_AGREEMENT
    assert parity["max_abs"] <= MAX_ABS
    assert [entry["name"] for entry in parity["classes"]] == ["background", "class_1", "class_2"]
    report = json.loads(report_path(result.path).read_text())
    assert report["parity"] == json.loads(json.dumps(parity))
    assert report["card"]["provenance"]["source_name"] == "logits.keras"
    stored = {p.key: p.value for p in onnx.load(result.path).metadata_props}
    assert list(stored) == ["histoseg"]


def test_one_channel_stays_one_channel(export_one):
    card = export_one("sigmoid").card
    assert (card.output.channels, card.output.activation, len(card.class_names)) == (1, "sigmoid", 2)


@pytest.mark.parametrize(("name", "activation"), [("logits", "softmax"), ("grey", "sigmoid")])
def test_wrong_activation_is_noticed(name, activation, keras_files, tmp_path):
    with pytest.raises(ModelError, match=f"{activation}.*--activation"):
        export.export_model(keras_files[name], tmp_path / "m.onnx", replace(OPTIONS, activation=activation))
    assert list(tmp_path.iterdir()) == []


def test_tiles_may_be_real_images(keras_files, tmp_path, shared_data):
    images = shared_data / "nucls" / "images"
    result = export.export_model(keras_files["softmax"], tmp_path / "model.onnx", OPTIONS, tiles=images)
    assert result.parity.source.startswith("images: 10 images")
    assert np.isfinite(result.parity.mean_abs)
