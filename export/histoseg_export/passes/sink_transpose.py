"""Move what computes value by value ahead of the transposes before it, so that these meet and cancel.

The converter does that for additions, but not for comparisons, which leaves maps between two layouts.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from histoseg_export.graph import NCHW_TO_NHWC, NHWC_TO_NCHW, Graph, attribute

_POINTWISE = frozenset(
    {"Add", "And", "Cast", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min"}
    | {"Mul", "Not", "Or", "Relu", "Sigmoid", "Sub", "Where", "Xor"}
)


def sink_transpose(graph: Graph) -> int:
    """Take out NCHW-to-NHWC transposes that only comparisons and the like stood behind.

    Returns:
        How many transposes fewer there are; nothing is changed unless there are.
    """
    before = [_copy(node) for node in graph.nodes], dict(graph.constants)
    count = _count(graph)
    for node in list(graph.nodes):
        if node.op_type in _POINTWISE and _can_lead(node, graph):
            _lead(node, graph)
    _cancel_pairs(graph)
    graph.drop_unused()
    fewer = count - _count(graph)
    if fewer <= 0:
        graph.nodes, graph.constants = before
    return max(fewer, 0)


def _can_lead(node: NodeProto, graph: Graph) -> bool:
    """Tell whether all that a node takes is transposed alike, or constant."""
    values = [name for name in node.input if name not in graph.constants]
    return bool(values) and all(_turns(graph.producer(name), NCHW_TO_NHWC) for name in values)


def _lead(node: NodeProto, graph: Graph) -> None:
    """Let a node work on NCHW, and transpose what it gives."""
    turn = NodeProto()
    for index, name in enumerate(node.input):
        if name in graph.constants:
            node.input[index] = _turn_constant(name, graph)
        else:
            maker = graph.producer(name)
            assert maker is not None
            turn = maker
            node.input[index] = maker.input[0]
    after = _copy(turn)
    after.name = f"{node.name}/after"
    after.input[:], after.output[:] = [f"{node.output[0]}/before"], [node.output[0]]
    node.output[0] = after.input[0]
    graph.nodes.insert(graph.nodes.index(node) + 1, after)


def _turn_constant(name: str, graph: Graph) -> str:
    values = graph.constants[name]
    if values.size == 1:
        return name
    whole = values.reshape((1,) * (4 - values.ndim) + values.shape)
    return graph.add_constant(np.transpose(whole, NHWC_TO_NCHW), name)


def _cancel_pairs(graph: Graph) -> None:
    for node in graph.nodes:
        before = graph.producer(node.input[0]) if _turns(node, NHWC_TO_NCHW) else None
        if before is not None and _turns(before, NCHW_TO_NHWC) and node.output[0] != graph.output:
            graph.rewire(node.output[0], before.input[0])


def _turns(node: NodeProto | None, permutation: list[int]) -> bool:
    return node is not None and node.op_type == "Transpose" and list(attribute(node, "perm")) == permutation


def _count(graph: Graph) -> int:
    return sum(node.op_type == "Transpose" for node in graph.nodes)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
