"""int8: real tiles calibrate it, the gate judges it, and the worst layers stay in float when it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from histoseg.card import card_from_text, card_to_text
from histoseg.errors import DataError, ModelError, ParityError
from histoseg.models import default_model
from histoseg_export.calibrate import SATURATED, measure_ranges
from histoseg_export.fresh import run_fresh
from histoseg_export.gates import Gates
from histoseg_export.graph import Graph
from histoseg_export.int8.qdq import count_kernels, insert_qdq
from histoseg_export.parity import require_parity
from histoseg_export.quantize import quantize
from histoseg_export.regions import find_float_nodes
from histoseg_export.tileset import TileSet, open_tile_set

TILE = 256
GATE = Gates().pick("int8")


def load(path: Path):
    model = onnx.load(path)
    return model, card_from_text({entry.key: entry.value for entry in model.metadata_props}["histoseg"])


def resize(model, card, tile=TILE):
    """Return a model without fully connected parts, and its card, for another tile."""
    for value in (model.graph.input[0], model.graph.output[0]):
        for place in (1, 2):
            value.type.tensor_type.shape.dim[place].dim_value = tile
    text = card_to_text(card).replace(str(card.patch_size_pixels[0]), str(tile))
    return model, card_from_text(text.replace('"overlap_px": 160', '"overlap_px": 144'))


def unbalance(model, layer, follower, *, channel, factor):
    """Make one channel of a layer much larger than the others, and its follower undo that."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    scaled = {f"{layer}/Conv.1": (channel, factor), f"{layer}/Conv.2": (channel, factor)}
    scaled[f"{follower}/Conv.1"] = ((slice(None), channel), 1 / factor)
    for name, (place, by) in scaled.items():
        values = numpy_helper.to_array(weights[name]).copy()
        values[place] *= by
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    return model


@pytest.fixture(scope="module")
def tnbc(shared_data):
    """Real tiles with masks, for the default model at 256 px."""
    _, card = resize(*load(default_model()))
    return open_tile_set(shared_data / "tnbc", card, 24, seed=1)


@pytest.fixture
def nuclei():
    """The default model at 256 px."""
    return resize(*load(default_model()))


def test_trained_unet_holds_the_gate_all_in_int8(nuclei, tnbc):
    model, card = nuclei
    before = model.SerializeToString()
    result, int8_card, report = quantize(model, card, tnbc, GATE)
    assert model.SerializeToString() == before
    require_parity(report.parity, "nuclei.keras")
    assert report.parity.judged_against == "truth masks"
    assert report.parity.dice_drop <= 0.005
    assert (report.kernels.int8_convolutions, report.kernels.int8_islands) == (report.kernels.convolutions, 1)
    assert (report.float_layers, report.layer_errors, report.folded_convolutions) == ((), (), 7)
    assert (int8_card.precision, int8_card.providers) == ("int8", ("cpu", "openvino"))
    assert card_from_text(card_to_text(int8_card)) == int8_card
    assert "tnbc" in int8_card.provenance["quantization"]["calibration"]
    assert result.ByteSize() < 0.4 * len(before)
    assert [value.type.tensor_type.elem_type for value in (*result.graph.input, *result.graph.output)] == [
        TensorProto.UINT8, TensorProto.FLOAT,
    ]  # fmt: skip


def test_weights_are_symmetric_per_channel_and_activations_uint8(nuclei, tnbc):
    result, *_ = quantize(*nuclei, tnbc, GATE)
    graph = Graph(result.graph)
    seen = 0
    for node in graph.nodes:
        if node.op_type == "Conv":
            data, weights = (graph.producer(name) for name in node.input[:2])
            stored, scales, zeros = (graph.constants[name] for name in weights.input)
            assert (stored.dtype, scales.shape) == (np.int8, (stored.shape[0],))
            assert not zeros.any()
            assert graph.constants[data.input[2]].dtype == np.uint8
            seen += 1
    assert seen == 26


def test_same_arguments_same_bytes_in_another_process(nuclei, tnbc, monkeypatch):
    results = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        results.append(run_fresh(quantize, *nuclei, tnbc, GATE)[0].SerializeToString(deterministic=True))
    assert results[0] == results[1]


def test_harmful_layers_are_found_and_left_in_float(nuclei, tnbc):
    model, card = nuclei
    for channel, (layer, follower) in enumerate(
        (("enc2_1_conv", "enc2_2_conv"), ("dec3_1_conv", "dec3_2_conv"))
    ):
        unbalance(model, layer, follower, channel=3 + 2 * channel, factor=300)
    steps = []
    _, int8_card, report = quantize(model, card, tnbc, GATE, on_step=steps.append)
    require_parity(report.parity, "unbalanced")
    names = [error.name for error in report.float_layers]
    assert set(names[:2]) == {"enc2_1_conv", "enc2_2_conv"}
    assert len(names) <= 4
    errors = [error.mean_abs for error in report.layer_errors]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 26
    assert report.kernels.int8_convolutions == report.kernels.convolutions - len(names)
    assert int8_card.provenance["quantization"]["float_layers"] == names
    assert "leaving enc2_1_conv in float" in steps


@pytest.mark.parametrize("budget", [0, 1])
def test_a_spent_budget_fails_the_gate(budget, nuclei, tnbc):
    model, card = nuclei
    unbalance(model, "enc2_1_conv", "enc2_2_conv", channel=3, factor=300)
    _, _, report = quantize(model, card, tnbc, GATE, float_layers=budget)
    assert len(report.float_layers) == budget
    with pytest.raises(ParityError, match=r"--int8-labels.*--calibrate.*--float-layers"):
        require_parity(report.parity, "unbalanced")
    document = report.to_json()
    assert document["parity"]["passed"] is False
    assert len(document["layer_errors"]) == (26 if budget else 0)


def test_a_layer_left_in_float_between_int8_ones_stays_in_float(nuclei, tnbc):
    """Left alone, onnxruntime quantizes its weights once more, with one scale for all of them."""
    model = onnx.shape_inference.infer_shapes(nuclei[0])
    ranges = measure_ranges(model, tnbc.tiles[:1])
    in_float = find_float_nodes(Graph(model.graph)) | {"enc2_1_conv/Conv"}
    result = insert_qdq(model, ranges, in_float=in_float)
    whole = count_kernels(insert_qdq(model, ranges, in_float=in_float - {"enc2_1_conv/Conv"}))
    assert count_kernels(result).int8_convolutions == whole.int8_convolutions - 1
    only = insert_qdq(model, ranges, in_float=in_float, only=["enc2_2_conv/Conv"])
    assert count_kernels(only).int8_convolutions == 1


def test_ranges_keep_the_image_and_end_where_a_sigmoid_saturates(nuclei, tnbc):
    model = onnx.shape_inference.infer_shapes(nuclei[0])
    ranges = measure_ranges(model, tnbc.tiles[:2] // 2)
    assert ranges["graph/Cast:0"] == (0.0, 255.0)
    assert ranges["head_logits/Conv:0"] == (-SATURATED, SATURATED)
    expose = onnx.helper.make_tensor_value_info("enc1_1_relu/Relu:0", TensorProto.FLOAT, [None] * 4)
    model.graph.output.append(expose)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(["enc1_1_relu/Relu:0"], {"image": tnbc.tiles[:2] // 2})[0]
    assert ranges["enc1_1_relu/Relu:0"] == pytest.approx((values.min(), values.max()), rel=1e-5)


@pytest.mark.parametrize("name", ["softmax", "logits", "sigmoid", "global", "sequential", "grey"])
def test_every_kind_of_network_is_quantized(name, export_one, shared_data):
    model, card = load(export_one(name).target)
    tiles = open_tile_set(shared_data / "nucls" / "images", card, 12, seed=4)
    result, _, report = quantize(model, card, tiles, Gates(int8_labels=0, int8_dice_drop=1).pick("int8"))
    assert report.kernels.int8_convolutions == report.kernels.convolutions >= 3
    assert report.parity.judged_against == "labels of fp32"
    # weights that nobody trained tell nothing of labels
    assert report.parity.mean_abs < 0.05
    session = onnxruntime.InferenceSession(result.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        output = session.run(None, {"image": tiles.tiles[:count]})[0]
        assert output.shape == (count, 64, 64, card.output.channels)


def test_normalisation_and_activation_stay_in_float(export_one):
    nodes = {node.name: node.op_type for node in onnx.load(export_one("logits").target).graph.node}
    in_float = find_float_nodes(Graph(onnx.load(export_one("logits").target).graph))
    kinds = {nodes[name] for name in in_float}
    assert "Softmax" in kinds
    assert "Cast" in kinds
    assert not kinds & {"Conv", "ConvTranspose", "Relu", "Concat", "MaxPool"}


def test_what_cannot_be_quantized_is_refused(nuclei, models):
    model, card = nuclei
    tiles = np.zeros((1, TILE, TILE, 3), np.uint8)
    with pytest.raises(DataError, match="1 tiles, expected at least 2"):
        quantize(model, card, TileSet(tiles, None, "one tile"), GATE)
    plain, plain_card = load(models / "constant.onnx")
    width, height = plain_card.patch_size_pixels
    two = TileSet(np.zeros((2, height, width, 3), np.uint8), None, "two tiles")
    with pytest.raises(ModelError, match="no convolution"):
        quantize(plain, plain_card, two, GATE)
