"""Each graph transformation alone: the values stay, the nodes go."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from histoseg_export.graph import Graph, per_channel
from histoseg_export.passes import fold_affine, fold_scale, hoist_transpose, lower_softmax

NHWC, NCHW = ["n", 8, 8, 3], ["n", 3, 8, 8]
RNG = np.random.default_rng(1)


def build(nodes, constants, *, image=("x", TensorProto.FLOAT, NCHW)):
    initializers = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info(*image)], [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def apply(model, simplify):
    """Run one pass; return its count, the remaining operators, and how far the values moved."""
    shape = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = RNG.integers(0, 256, shape)
    before = run(model, x)
    graph = Graph(model.graph)
    changes = simplify(graph)
    graph.store()
    onnx.checker.check_model(model, full_check=True)
    return changes, [node.op_type for node in model.graph.node], np.abs(run(model, x) - before).max()


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    kind = np.uint8 if session.get_inputs()[0].type == "tensor(uint8)" else np.float32
    return session.run(None, {"x": x.astype(kind)})[0]


def conv(source, target, weights="w", *more, kind="Conv", **attributes):
    attributes = {"pads": [1, 1, 1, 1]} | attributes
    return helper.make_node(kind, [source, weights, *more], [target], **attributes)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("bias", [True, False])
def test_fold_affine(kind, bias):
    channels = 5
    shape = (channels, 3, 3, 3) if kind == "Conv" else (3, channels, 3, 3)
    more = ["b"] if bias else []
    nodes = [
        conv("x", "a", "w", *more, kind=kind),
        helper.make_node("Mul", ["a", "s"], ["c"]),
        helper.make_node("Add", ["t", "c"], ["d"]),
        helper.make_node("Sub", ["d", "u"], ["y"]),
    ]
    constants = {
        "w": RNG.normal(size=shape) / 100, "s": RNG.normal(size=(1, channels, 1, 1)),
        "t": RNG.normal(size=(channels, 1, 1)), "u": 0.5,
    } | ({"b": RNG.normal(size=channels)} if bias else {})  # fmt: skip
    changes, operators, moved = apply(build(nodes, constants), fold_affine)
    assert (changes, operators) == (3, [kind])
    assert moved < 1e-4


def test_fold_affine_leaves_what_others_see():
    nodes = [
        conv("x", "a"),
        helper.make_node("Mul", ["a", "s"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    changes, *_ = apply(build(nodes, {"w": RNG.normal(size=(3, 3, 3, 3)), "s": 2.0}), fold_affine)
    assert changes == 0


def test_fold_affine_leaves_what_varies_in_space():
    nodes = [conv("x", "a"), helper.make_node("Add", ["a", "t"], ["y"])]
    constants = {"w": RNG.normal(size=(3, 3, 3, 3)), "t": RNG.normal(size=(3, 8, 8))}
    assert apply(build(nodes, constants), fold_affine)[0] == 0


@pytest.mark.parametrize("group", [1, 3])
def test_fold_scale_into_all_users(group):
    nodes = [
        helper.make_node("Mul", ["s", "x"], ["m"]),
        conv("m", "a", group=group),
        conv("m", "b", "v"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    constants = {
        "s": RNG.uniform(0.001, 0.01, (3, 1, 1)), "w": RNG.normal(size=(6, 3 // group, 3, 3)),
        "v": RNG.normal(size=(6, 3, 3, 3)),
    }  # fmt: skip
    changes, operators, moved = apply(build(nodes, constants), fold_scale)
    assert (changes, operators) == (1, ["Conv", "Conv", "Add"])
    assert moved < 1e-4


def test_fold_scale_leaves_other_users():
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["m"]),
        conv("m", "a"),
        helper.make_node("Add", ["a", "m"], ["y"]),
    ]
    assert apply(build(nodes, {"s": 0.1, "w": RNG.normal(size=(3, 3, 3, 3))}), fold_scale)[0] == 0


def test_hoist_transpose_over_the_normalisation():
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["f", "mean"], ["c"]),
        helper.make_node("Mul", ["c", "scale"], ["m"]),
        helper.make_node("Transpose", ["m"], ["t"], perm=[0, 3, 1, 2]),
        conv("t", "y"),
    ]
    constants = {"mean": [100.0, 120.0, 140.0], "scale": 0.01, "w": RNG.normal(size=(2, 3, 3, 3))}
    model = build(nodes, constants, image=("x", TensorProto.UINT8, NHWC))
    changes, operators, moved = apply(model, hoist_transpose)
    assert (changes, operators) == (3, ["Transpose", "Cast", "Sub", "Mul", "Conv"])
    assert moved < 1e-5


@pytest.mark.parametrize("axis_last", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_lower_softmax(classes, axis_last):
    first, second = ("t", "y") if axis_last else ("y", "t")
    turn = helper.make_node("Transpose", ["a" if axis_last else "t"], [first], perm=[0, 2, 3, 1])
    axis = -1 if axis_last else 1
    softmax = helper.make_node("Softmax", ["t" if axis_last else "a"], [second], axis=axis)
    tail = [turn, softmax] if axis_last else [softmax, turn]
    constants = {"w": RNG.normal(size=(classes, 3, 3, 3)) / 100, "b": RNG.normal(size=classes)}
    _, operators, moved = apply(build([conv("x", "a", "w", "b"), *tail], constants), lower_softmax)
    if classes == 2:
        assert sorted(operators) == ["Conv", "Sigmoid", "Transpose"]
    else:
        assert operators == ["Conv", "Transpose", "Softmax"]
    assert moved < 1e-6


def test_lower_softmax_leaves_logits_that_others_see():
    nodes = [
        conv("x", "a"),
        helper.make_node("Softmax", ["a"], ["s"], axis=1),
        helper.make_node("Mul", ["a", "s"], ["y"]),
    ]
    assert apply(build(nodes, {"w": RNG.normal(size=(2, 3, 3, 3)) / 100}), lower_softmax)[0] == 0


def test_per_channel():
    assert per_channel(np.ones((3, 1, 1)), 3).shape == (3,)
    assert per_channel(np.float32(2), 4).tolist() == [2, 2, 2, 2]
    assert per_channel(np.ones((1, 3, 1, 2)), 3) is None
    assert per_channel(np.ones((3,)), 3) is None  # along the width
