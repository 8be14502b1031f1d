"""The proof: what differs from Keras is refused, and leaves no model on disk."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from histoseg.errors import HistosegError, ModelError, ParityError
from histoseg.truth import NO_CLASS
from histoseg_export import export
from histoseg_export.describe import ExportOptions
from histoseg_export.fresh import run_fresh
from histoseg_export.gates import Floor, Gates
from histoseg_export.load import LoadOptions, load_model
from histoseg_export.parity import Expected, compare, require_parity
from histoseg_export.proofoptions import ProofOptions
from histoseg_export.prooftable import build_proof_table
from histoseg_export.prove import measure_floor, predict_source, prove_file
from histoseg_export.tileset import TileSet
from histoseg_export.variants import explain_floor, judge_again

OPTIONS = ExportOptions(tile=64, spacing_um_px=0.5)
GATES = Gates()
NAMES = ("background", "nucleus", "other")


def _spoil_weight(model):
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    return model


def _drop_relu(model):
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Abs"
    return model


def _models(folder: Path) -> list[Path]:
    """Return models and unfinished files; a report may stay."""
    return [path for path in folder.iterdir() if path.suffix != ".json"]


@pytest.mark.parametrize("tamper", [_spoil_weight, _drop_relu])
def test_tampered_graph_is_refused_and_leaves_no_model(tamper, keras_files, tmp_path, monkeypatch):
    honest = export.convert_model
    monkeypatch.setattr(export, "convert_model", lambda *args: tamper(honest(*args)))
    with pytest.raises(ParityError, match="does not behave like softmax"):
        export.export_model(keras_files["softmax"], tmp_path / "model.onnx", OPTIONS)
    assert _models(tmp_path) == []


def test_refusal_keeps_an_earlier_export(keras_files, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"earlier")
    honest = export.convert_model
    monkeypatch.setattr(export, "convert_model", lambda *args: _drop_relu(honest(*args)))
    with pytest.raises(ParityError):
        export.export_model(keras_files["softmax"], tmp_path / "model.onnx", OPTIONS)
    assert [path.name for path in _models(tmp_path)] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"earlier"


def test_parity_is_in_the_card_and_in_the_report(export_one):
    import json

    from histoseg_export.report import report_path

    result = export_one("logits")
    parity = result.card.parity
    assert parity["tiles"] >= 16
    assert parity["label_agreement"] >= GATES.fp32_labels
    assert parity["off_ppm"] <= GATES.fp32_off_ppm
    assert [entry["name"] for entry in parity["classes"]] == ["background", "class_1", "class_2"]
    report = json.loads(report_path(result.target).read_text())["models"][0]
    assert {**report["parity"], **json.loads(json.dumps(parity))} == report["parity"]
    assert "ms_per_tile" not in parity
    assert report["card"]["provenance"]["source_name"] == "logits.keras"
    stored = {p.key: p.value for p in onnx.load(result.target).metadata_props}
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
    proof = ProofOptions(tiles=images)
    result = export.export_model(keras_files["softmax"], tmp_path / "model.onnx", OPTIONS, proof=proof)
    assert "images: 10 images" in result.parities[0].source
    assert np.isfinite(result.parities[0].mean_abs)


@pytest.fixture(scope="module")
def proof(keras_files, export_one, noise_tiles, tmp_path_factory):
    """The source's probabilities for a tiny U-Net, written by a process of its own, and the exported file."""
    from histoseg_export.describe import describe_model

    source = keras_files["softmax"]
    description = describe_model(load_model(source).model, None, OPTIONS)
    folder = tmp_path_factory.mktemp("proof")
    reference = predict_source(source, LoadOptions(), description, noise_tiles, folder)
    return reference, export_one("softmax").target


@pytest.fixture(scope="module")
def noise_tiles():
    rng = np.random.default_rng(5)
    tiles = rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    return TileSet(tiles, rng.integers(0, 2, tiles.shape[:3], dtype=np.uint8), "noise, six tiles")


def test_fresh_processes_agree_on_an_honest_file(proof):
    reference, path = proof
    parity = prove_file(path, reference, GATES.pick("fp32"))
    require_parity(parity, "softmax.keras")
    assert (parity.tiles, parity.tile_px, parity.source) == (6, (64, 64), "noise, six tiles")
    assert parity.judged_against == "truth masks"
    assert parity.classes[1].truth_dice == pytest.approx(parity.classes[1].source_truth_dice)
    assert parity.ms_per_tile > 0
    assert parity.source_ms_per_tile > 0


def test_rounding_leaves_an_ordinary_model_alone(proof, keras_files):
    from histoseg_export.describe import describe_model

    reference, _ = proof
    source = keras_files["softmax"]
    description = describe_model(load_model(source).model, None, OPTIONS)
    floor = measure_floor(source, LoadOptions(), description, reference)
    assert (floor.label_agreement, floor.off_ppm) == (1, 0)
    assert 0 < floor.mean_abs < 1e-5  # the images did change


def test_a_model_is_judged_by_its_own_rounding_and_that_is_said(export_one):
    variant = export_one("softmax").variants[0]
    assert explain_floor(variant) == ()
    shaky = replace(variant, parity=replace(variant.parity, label_agreement=0.9995, off_ppm=900.0))
    assert not shaky.passed
    assert not judge_again(shaky, Floor(1.0, 0.0, 0.0)).passed
    judged = judge_again(shaky, Floor(0.9998, 400.0, 1e-4))
    assert judged.passed
    assert judged.card.parity["floor"]["label_agreement"] == 0.9998
    assert "rounding alone changes 0.020% of the Keras model's labels" in explain_floor(judged)[0]
    wrong = replace(variant, parity=replace(variant.parity, label_agreement=0.99))
    assert not judge_again(wrong, Floor(0, 1e6, 1)).passed


def test_a_file_that_was_changed_on_disk_fails(proof, tmp_path):
    reference, path = proof
    onnx.save(_drop_relu(onnx.load(path)), tmp_path / "other.onnx")
    parity = prove_file(tmp_path / "other.onnx", reference, GATES.pick("fp32"))
    with pytest.raises(ParityError, match=r"labels agree on .*required 99\.99%"):
        require_parity(parity, "softmax.keras")


def test_the_reference_is_the_file_not_the_model_in_memory(proof, keras_files):
    reference, _ = proof
    model = load_model(keras_files["softmax"]).model
    own = np.asarray(model(reference.open().tiles.astype(np.float32) / 255))
    assert np.abs(own - reference.open().probabilities).max() < 1e-5


def test_the_table_shows_every_precision_beside_its_gate(proof):
    from rich.console import Console

    reference, path = proof
    parities = [prove_file(path, reference, GATES.pick(precision)) for precision in ("fp32", "int8")]
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(build_proof_table(parities))
    text = console.export_text()
    assert all(
        word in text
        for word in ("fp32", "int8", "99.99%", "99.00%", "at most", "0.01", "not judged", "(source ")
    )


def test_run_fresh_runs_elsewhere():
    assert run_fresh(os.getpid) != os.getpid()


def test_run_fresh_keeps_the_error(tmp_path):
    with pytest.raises(ModelError, match="no such model file"):
        run_fresh(_open_session(), tmp_path / "missing.onnx")


def test_run_fresh_explains_a_death_in_one_line():
    with pytest.raises(HistosegError, match=r"abort was ended by signal 6, expected a result"):
        run_fresh(os.abort)
    with pytest.raises(HistosegError, match=r"chdir failed \(FileNotFoundError.*expected a result") as caught:
        run_fresh(os.chdir, "/nowhere/at/all")
    assert "\n" not in str(caught.value)


def _open_session():
    from histoseg.session import open_session

    return open_session


def _expect(probabilities, truth=None):
    tiles = np.zeros((*probabilities.shape[:3], 3), np.uint8)
    return Expected("keras", "made up", NAMES, tiles, truth, probabilities)


@given(seed=st.integers(0, 1000), count=st.integers(1, 6), swapped=st.integers(0, 30))
def test_figures_count_what_differs(seed, count, swapped):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (count, 8, 8))
    expected = np.eye(3, dtype=np.float32)[labels]
    found = expected.copy()
    places = rng.permutation(labels.size)[:swapped]
    found.reshape(-1, 3)[places] = np.roll(found.reshape(-1, 3)[places], 1, axis=-1)
    batches = iter(np.split(found, range(4, count, 4)))
    parity = compare(lambda tiles: next(batches), _expect(expected), GATES.pick("fp32"))
    assert parity.differing_pixels == len(places)
    assert parity.label_agreement == 1 - len(places) / labels.size
    assert parity.off_ppm == pytest.approx(1e6 * 2 * len(places) / found.size)
    assert parity.max_abs == (1 if len(places) else 0)
    for index, entry in enumerate(parity.classes):
        mine, theirs = labels == index, found.argmax(-1) == index
        assert entry.dice == pytest.approx(2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()))


@given(seed=st.integers(0, 1000), threshold=st.floats(0.05, 0.95))
def test_a_threshold_decides_labels(seed, threshold):
    rng = np.random.default_rng(seed)
    expected, found = (rng.dirichlet((1, 1), (2, 8, 8)).astype(np.float32) for _ in range(2))
    reference = replace(_expect(expected), class_names=("a", "b"), threshold=threshold)
    parity = compare(lambda tiles: found, reference, GATES.pick("fp32"))
    mine, theirs = (values[..., 1] >= threshold for values in (expected, found))
    assert parity.label_agreement == pytest.approx((mine == theirs).mean())


@given(seed=st.integers(0, 1000))
def test_dice_to_the_truth_leaves_unknown_pixels_out(seed):
    rng = np.random.default_rng(seed)
    expected, found = (rng.dirichlet((1, 1, 1), (2, 8, 8)).astype(np.float32) for _ in range(2))
    truth = rng.integers(0, 3, (2, 8, 8)).astype(np.uint8)
    truth[:, :3] = NO_CLASS
    parity = compare(lambda tiles: found, _expect(expected, truth), GATES.pick("int8"))
    known = truth != NO_CLASS
    for index, entry in enumerate(parity.classes):
        for values, dice in ((found, entry.truth_dice), (expected, entry.source_truth_dice)):
            mine, theirs = truth[known] == index, values.argmax(-1)[known] == index
            assert dice == pytest.approx(2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()))


def test_a_nan_never_passes():
    expected = np.full((1, 4, 4, 3), 1 / 3, np.float32)
    found = expected.copy()
    found[0, 0, 0, 0] = np.nan
    parity = compare(lambda tiles: found, _expect(expected), Gates(labels_only=True).pick("fp32"))
    assert not parity.passed
