"""Fold what remains of batch normalisation into the convolution before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto

from histoseg_export.graph import Graph, attribute, constant_operand, per_channel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OUT_AXIS = {"Conv": 0, "ConvTranspose": 1}


def fold_affine(graph: Graph) -> int:
    """Fold constant multiplications and additions after a convolution into its weights and bias."""
    changes = 0
    for node in list(graph.nodes):
        while node.op_type in _OUT_AXIS and _fold_next(node, graph):
            changes += 1
    return changes


def _fold_next(node: NodeProto, graph: Graph) -> bool:
    after = graph.follower(node)
    if after is None or after.op_type not in ("Add", "Mul", "Sub") or not _is_plain(node, graph):
        return False
    if after.op_type == "Sub" and after.input[1] not in graph.constants:
        return False  # a constant minus the value
    weights = graph.constants[node.input[1]]
    values = constant_operand(after, graph)
    operand = None if values is None else per_channel(values, weights.shape[_OUT_AXIS[node.op_type]])
    if operand is None:
        return False
    _apply(node, graph, after.op_type, operand)
    graph.remove_after(node, after)
    return True


def _apply(node: NodeProto, graph: Graph, kind: str, operand: NDArray[Any]) -> None:
    axis = _OUT_AXIS[node.op_type]
    weights = graph.constants[node.input[1]].astype(np.float64)
    bias = (
        graph.constants[node.input[2]].astype(np.float64)
        if len(node.input) > 2
        else np.zeros(weights.shape[axis])
    )
    if kind == "Mul":
        weights = weights * operand.reshape((-1,) + (1,) * (weights.ndim - axis - 1))
        bias = bias * operand
    else:
        bias = bias + (operand if kind == "Add" else -operand.astype(np.float64))
    names = [graph.add_constant(values.astype(np.float32), node.input[1]) for values in (weights, bias)]
    source = node.input[0]
    del node.input[:]
    node.input.extend([source, *names])


def _is_plain(node: NodeProto, graph: Graph) -> bool:
    """Tell whether weights and bias are constants whose output channels can be scaled one by one."""
    grouped_transpose = node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1
    return not grouped_transpose and all(name in graph.constants for name in node.input[1:])
