"""Bring the first transpose to the front, where it moves one byte for a value instead of four."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from histoseg_export.graph import NHWC_TO_NCHW, Graph, attribute, constant_operand, data_input

_ELEMENTWISE = frozenset({"Add", "Mul", "Sub"})


def hoist_transpose(graph: Graph) -> int:
    """Move NHWC-to-NCHW transposes ahead of the cast and normalisation of the input."""
    changes = 0
    for node in list(graph.nodes):
        if node.op_type != "Transpose" or list(attribute(node, "perm")) != NHWC_TO_NCHW:
            continue
        while (before := graph.producer(node.input[0])) is not None and _can_follow(before, graph):
            _turn_constant(before, graph)
            graph.swap(before, node)
            changes += 1
    return changes


def _can_follow(node: NodeProto, graph: Graph) -> bool:
    if graph.follower(node) is None:
        return False
    if node.op_type == "Cast":
        return True
    values = constant_operand(node, graph)
    return node.op_type in _ELEMENTWISE and values is not None and values.ndim <= 1


def _turn_constant(node: NodeProto, graph: Graph) -> None:
    """Make a constant that varied along the last axis vary along the channels of NCHW."""
    values = constant_operand(node, graph)
    if values is None or values.size == 1:
        return
    index = 1 - list(node.input).index(data_input(node, graph))
    node.input[index] = graph.add_constant(np.reshape(values, (-1, 1, 1)), node.input[index])
