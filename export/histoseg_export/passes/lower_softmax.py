"""Give the last softmax a form that onnxruntime computes fast on the CPU; the values stay the same.

A softmax over the channels of NCHW costs two hidden transposes there (8 ms for a 512 px tile of two classes,
where the sigmoid below takes 2 ms).
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from histoseg_export.graph import NCHW_TO_NHWC, Graph, attribute

# between the logits and the softmax, these treat every channel alike
_LINEAR = frozenset({"Resize", "Transpose"})
_OUT_AXIS = {"Conv": 0, "ConvTranspose": 1}


def lower_softmax(graph: Graph) -> int:
    """Turn a two-class softmax into a sigmoid of the logits' difference, and others to channels last."""
    softmax = _find_last_softmax(graph)
    if softmax is None:
        return 0
    logits = _find_logits(softmax, graph)
    if logits is not None and _channels(logits, graph) == 2:
        _subtract_channels(logits, graph)
        del softmax.attribute[:]
        softmax.op_type = "Sigmoid"
        return 1
    after = graph.follower(softmax)
    if attribute(softmax, "axis", -1) == 1 and after is not None and _is_nhwc_transpose(after):
        graph.swap(softmax, after)
        del softmax.attribute[:]
        softmax.attribute.append(helper.make_attribute("axis", -1))
        return 1
    return 0


def _find_last_softmax(graph: Graph) -> NodeProto | None:
    """Return the softmax over the classes at the graph's end, at most a transpose away from its output."""
    node = graph.producer(graph.output)
    if node is not None and _is_nhwc_transpose(node):
        node = graph.producer(node.input[0])
        expected = 1
    else:
        expected = -1
    if node is None or node.op_type != "Softmax":
        return None
    axis = attribute(node, "axis", -1)
    return node if axis in (expected, expected % 4) else None


def _find_logits(softmax: NodeProto, graph: Graph) -> NodeProto | None:
    """Return the convolution whose output reaches the softmax through linear nodes, and nobody else."""
    node = graph.producer(softmax.input[0])
    while node is not None and graph.follower(node) is not None and node.op_type in _LINEAR:
        # cubic and nearest resizing are linear, too: any weights that sum to one
        node = graph.producer(node.input[0])
    if node is None or node.op_type not in _OUT_AXIS or graph.follower(node) is None:
        return None
    constant = all(name in graph.constants for name in node.input[1:])
    return node if constant and attribute(node, "group", 1) == 1 else None


def _channels(node: NodeProto, graph: Graph) -> int:
    return int(graph.constants[node.input[1]].shape[_OUT_AXIS[node.op_type]])


def _subtract_channels(node: NodeProto, graph: Graph) -> None:
    """Make channel 0 `l0 - l1` and channel 1 `l1 - l0`: `sigmoid(l0 - l1)` is `softmax(l)[0]`."""
    for index, name in list(enumerate(node.input))[1:]:
        axis = _OUT_AXIS[node.op_type] if index == 1 else 0
        values = graph.constants[name].astype(np.float64)
        first, second = np.take(values, [0], axis), np.take(values, [1], axis)
        difference = np.concatenate([first - second, second - first], axis)
        node.input[index] = graph.add_constant(difference.astype(np.float32), name)


def _is_nhwc_transpose(node: NodeProto) -> bool:
    return node.op_type == "Transpose" and list(attribute(node, "perm")) == NCHW_TO_NHWC
