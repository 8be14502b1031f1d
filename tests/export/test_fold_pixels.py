"""Folding moves pixels into channels and back: the values stay the same, whatever the shapes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from histoseg_export.graph import Graph
from histoseg_export.int8 import fold_pixels, pad_channels


def normal(*shape):
    """Return values that depend on the shape alone."""
    return np.random.default_rng(shape).normal(size=shape)


def build(nodes, constants, *, channels=3, size=(8, 12)):
    initializers = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, *size])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph(nodes, "g", [image], [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def conv(source, target, weights, *more, kind="Conv", **attributes):
    return helper.make_node(kind, [source, weights, *more], [target], name=f"{target}/{kind}", **attributes)


def same(k):
    return {"pads": [(k - 1) // 2] * 4}


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def fold(model):
    """Return how many convolutions were folded, the model's operators, and how far the largest moved."""
    sizes = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = normal(*sizes).astype(np.float32)
    before = run(model, x)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    graph = Graph(model.graph)
    count = fold_pixels(graph, shapes)
    graph.store()
    onnx.checker.check_model(model, full_check=True)
    return (
        count,
        [node.op_type for node in model.graph.node],
        np.abs(run(model, x) - before).max() / np.abs(before).max(),
    )


@settings(max_examples=40)
@given(
    k=st.integers(1, 6), s=st.integers(2, 4), top=st.integers(0, 2), left=st.integers(0, 2),
    extra=st.integers(0, 2), filters=st.integers(1, 5), bias=st.booleans(),
)  # fmt: skip
def test_transposed_convolutions_of_any_shape(k, s, top, left, extra, filters, bias):
    # what enlarges by just its stride: k - pads + output padding = s
    bottom, right = k + extra - s - top, k + extra - s - left
    assume(0 <= bottom < k and 0 <= right < k and extra < s and top < k and left < k)
    constants = {"w": normal(3, filters, k, k)} | ({"b": normal(filters)} if bias else {})
    attributes = {"strides": [s, s], "pads": [top, left, bottom, right], "output_padding": [extra, extra]}
    node = conv("x", "y", "w", *(["b"] if bias else []), kind="ConvTranspose", **attributes)
    count, operators, moved = fold(build([node], constants))
    assert (count, operators.count("ConvTranspose"), operators.count("Conv")) == (1, 0, 1)
    assert moved < 1e-5


@settings(max_examples=20)
@given(k=st.sampled_from([1, 3, 5, 7]), filters=st.integers(1, 8), channels=st.integers(1, 4))
def test_thin_convolutions(k, filters, channels):
    constants = {"w": normal(filters, channels, k, k), "b": normal(filters)}
    count, operators, moved = fold(build([conv("x", "y", "w", "b", **same(k))], constants, channels=channels))
    assert (count, operators.count("Conv")) == (1, 1)
    assert moved < 1e-5


@settings(max_examples=20)
@given(
    k=st.sampled_from([1, 3, 5]), clip=st.booleans(), widths=st.tuples(*[st.integers(1, 5)] * 3)
)  # fmt: skip
def test_a_decoders_end_stays_folded(k, widths, clip):
    """Skip and enlarged features are joined, and classified, without being put in place between."""
    skip, up, classes = widths
    activation = ["Clip", "low", "high"] if clip else ["Relu"]
    nodes = [
        conv("x", "s", "ws", "bs", **same(3)),
        helper.make_node(activation[0], ["s", *activation[1:]], ["t"], name="t/activation"),
        conv("x", "d", "wd", strides=[2, 2], **same(3)),
        conv("d", "u", "wu", kind="ConvTranspose", strides=[2, 2]),
        helper.make_node("Concat", ["t", "u"], ["j"], name="j/Concat", axis=1),
        conv("j", "y", "wy", "by", **same(k)),
    ]
    constants = {
        "ws": normal(skip, 3, 3, 3), "bs": normal(skip), "low": -0.5, "high": 0.5,
        "wd": normal(16, 3, 3, 3), "wu": normal(16, up, 2, 2),
        "wy": normal(classes, skip + up, k, k), "by": normal(classes),
    }  # fmt: skip
    count, operators, moved = fold(build(nodes, constants))
    assert count == 3
    assert operators.count("Reshape") == 2  # once, at the end
    assert moved < 1e-5


def test_what_others_need_in_place_is_unfolded_once():
    nodes = [
        conv("x", "a", "w", **same(3)),
        conv("a", "b", "v", **same(3)),
        helper.make_node("MaxPool", ["a"], ["p"], name="p/MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "p"], ["q"], name="q/Add"),
        helper.make_node("Add", ["b", "q"], ["y"], name="y/Add"),
    ]
    constants = {"w": normal(4, 3, 3, 3), "v": normal(4, 4, 3, 3)}
    count, operators, moved = fold(build(nodes, constants))
    assert (count, operators.count("Reshape")) == (2, 4)  # one for each convolution
    assert moved < 1e-5


@pytest.mark.parametrize(
    ("node", "shape", "size"),
    [
        (conv("x", "y", "w", **same(3)), (16, 3, 3, 3), (8, 12)),  # fills a vector
        (conv("x", "y", "w", **same(3)), (2, 3, 3, 3), (7, 12)),  # odd height
        (conv("x", "y", "w", strides=[2, 2], **same(3)), (2, 3, 3, 3), (8, 12)),
        (conv("x", "y", "w", dilations=[2, 2], pads=[2] * 4), (2, 3, 3, 3), (8, 12)),
        (conv("x", "y", "w", group=3, **same(3)), (3, 1, 3, 3), (8, 12)),
        (conv("x", "y", "w"), (2, 3, 3, 3), (8, 12)),  # smaller result
        (
            conv("x", "y", "w", kind="ConvTranspose", strides=[2, 2]),
            (3, 2, 3, 3),
            (8, 12),
        ),  # larger than twice
        (conv("x", "y", "w", kind="ConvTranspose", strides=[2, 2], group=3), (3, 1, 2, 2), (8, 12)),
        (conv("x", "y", "w", kind="ConvTranspose", strides=[2, 1], pads=[0, 0, 0, 1]), (3, 2, 2, 2), (8, 12)),
    ],
)
def test_what_cannot_gain_or_be_folded_stays(node, shape, size):
    count, operators, moved = fold(build([node], {"w": normal(*shape)}, size=size))
    assert (count, operators, moved) == (0, [node.op_type], 0)


@settings(max_examples=15)
@given(filters=st.integers(1, 40), bias=st.booleans(), relu=st.booleans())
def test_padding_fills_vectors_and_changes_nothing(filters, bias, relu):
    nodes = [conv("x", "a", "w", *(["b"] if bias else []), **same(3))]
    nodes += [helper.make_node("Relu", ["a"], ["r"], name="r/Relu")] if relu else []
    nodes.append(helper.make_node("Sigmoid", ["r" if relu else "a"], ["y"], name="y/Sigmoid"))
    constants = {"w": normal(filters, 3, 3, 3)} | ({"b": normal(filters)} if bias else {})
    model = build(nodes, constants)
    x = normal(2, 3, 8, 12).astype(np.float32)
    before = run(model, x)
    graph = Graph(model.graph)
    ranges = pad_channels(graph)
    graph.store()
    onnx.checker.check_model(model, full_check=True)
    assert graph.constants[graph.nodes[0].input[1]].shape[0] % 16 == 0
    assert bool(ranges) == bool(filters % 16)
    assert set(ranges.values()) <= {"a", "r"}
    assert np.abs(run(model, x) - before).max() < 1e-5


def test_padding_leaves_what_stays_in_float():
    model = build(
        [conv("x", "a", "w"), helper.make_node("Relu", ["a"], ["y"], name="y/Relu")],
        {"w": normal(3, 3, 1, 1)},
    )
    graph = Graph(model.graph)
    assert pad_channels(graph, kept=["a/Conv"]) == {}
    assert len(graph.nodes) == 2
