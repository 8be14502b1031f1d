"""fp16: half the size, the same interface, and fp32 where fp16 would overflow."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from histoseg.card import InputSpec, ModelCard, OutputSpec, Tiling, card_from_text
from histoseg.errors import ModelError
from histoseg_export.gates import Gates
from histoseg_export.half import MAX_HALF, to_half
from histoseg_export.parity import Expected, compare, require_parity

FP32, FP16 = TensorProto.FLOAT, TensorProto.FLOAT16


def load(path):
    model = onnx.load(path)
    return model, card_from_text({entry.key: entry.value for entry in model.metadata_props}["histoseg"])


def run(model, tiles):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: tiles})[0]


def types_of(model):
    """Return the type of every value."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize("name", ["softmax", "logits", "sigmoid", "global", "sequential"])
def test_labels_hold_and_the_interface_stays(name, export_one, noise):
    model, card = load(export_one(name).target)
    before = model.SerializeToString()
    half, half_card = to_half(model, card)
    assert model.SerializeToString() == before
    assert [value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)] == [
        TensorProto.UINT8, FP32,
    ]  # fmt: skip
    assert (half_card.precision, half_card.providers) == ("fp16", ("cuda", "tensorrt"))
    expected, found = run(model, noise), run(half, noise)
    if card.output.channels == 1:
        expected, found = (np.concatenate([1 - values, values], -1) for values in (expected, found))
    reference = Expected("fp32", "noise", card.class_names, noise, None, expected)
    batches = iter((found[:4], found[4:]))
    gate = Gates(fp16_labels=0.99).pick("fp16")  # noise, and weights that nobody trained, make near-ties
    require_parity(compare(lambda tiles: next(batches), reference, gate), name)
    assert np.abs(found - expected).max() < 0.005


@pytest.mark.parametrize("name", ["softmax", "global"])
def test_convolutions_are_half_and_the_ends_are_not(name, export_one):
    half, _ = to_half(*load(export_one(name).target))
    types = types_of(half)
    for node in half.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            assert {types[value] for value in (*node.input, *node.output)} == {FP16}
        if node.op_type in ("GlobalAveragePool", "ReduceMean", "Softmax"):
            assert types[node.output[0]] == FP32
    last = next(node for node in reversed(half.graph.node) if node.op_type in ("Sigmoid", "Softmax"))
    assert types[last.output[0]] == FP32


def test_means_over_large_areas_do_not_overflow():
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 3, 64, 64])
    output = helper.make_tensor_value_info("y", FP32, ["n", 2, 1, 1])
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], name="cast", to=FP32),
        helper.make_node("Conv", ["x", "w"], ["c"], name="first"),
        helper.make_node("GlobalAveragePool", ["c"], ["g"], name="mean"),
        helper.make_node("Conv", ["g", "v"], ["y"], name="second"),
    ]
    weights = [
        numpy_helper.from_array(np.full((2, 3, 1, 1), 1.0, np.float32), "w"),
        numpy_helper.from_array(np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1) / 765, "v"),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [image], [output], weights), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    card = ModelCard(
        "none", ("a", "b"), ("#000000", "#ffffff"), 0.5, (64, 64),
        InputSpec("image", "NCHW", "uint8", "RGB", (None, 3, 64, 64)), OutputSpec("y", "NCHW", "softmax", 2),
        Tiling(1, 0, 0), "fp32",
    )  # fmt: skip
    half, _ = to_half(model, card)
    types = types_of(half)
    mean = next(node for node in half.graph.node if node.op_type == "GlobalAveragePool")
    # 4096 values of 765 sum up to 3.1 million; the CPU adds in fp32 whatever the type, CUDA may not
    assert {types[value] for value in (*mean.input, *mean.output)} == {FP32}
    white = np.full((1, 3, 64, 64), 255, np.uint8)
    assert np.allclose(run(half, white), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("value", "words"), [(np.inf, "not finite"), (np.nan, "not finite"), (2 * MAX_HALF, "at most 65504")]
)
def test_weights_that_do_not_fit_are_named(value, words, export_one):
    model, card = load(export_one("softmax").target)
    tensor = model.graph.initializer[2]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[-1] = value
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(ModelError, match=words) as caught:
        to_half(model, card)
    assert f"'{name}'" in str(caught.value)


def test_default_model_in_half(shared_data):
    from histoseg.models import default_model
    from histoseg_export.tileset import open_tile_set

    model, card = load(default_model())
    half, _ = to_half(model, card)
    assert half.ByteSize() < 0.55 * model.ByteSize()
    tiles = open_tile_set(shared_data / "tnbc" / "images", card, 2, seed=0).tiles
    reference = Expected("fp32", "tnbc", card.class_names, tiles, None, run(model, tiles))
    require_parity(compare(lambda batch: run(half, batch), reference, Gates().pick("fp16")), "nuclei")
