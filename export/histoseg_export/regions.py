"""Which part of a network lies before its first layers with weights, and which after its last."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto

    from histoseg_export.graph import Graph

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
MOVES = frozenset({"DepthToSpace", "Reshape", "Slice", "Transpose"})
"""These change no value."""


def find_float_nodes(graph: Graph) -> set[str]:
    """Return the nodes that stay in float: normalisation before the first layers, activation after the last.

    What only moves values between a last layer and its activation is not among them: it moves bytes.
    """
    after = _spread(graph.nodes, forward=True)
    before = _spread(graph.nodes, forward=False)
    return {
        node.name
        for node in graph.nodes
        if node.output[0] not in after or (node.output[0] not in before and node.op_type not in MOVES)
    }


def _spread(nodes: list[NodeProto], *, forward: bool) -> set[str]:
    """Return outputs of the layers with weights and of all nodes after them, or before them."""
    reached: set[str] = set()
    wanted: set[str] = set()
    for node in nodes if forward else reversed(nodes):
        touches = reached.intersection(node.input) if forward else wanted.intersection(node.output)
        if node.op_type in WEIGHTED or touches:
            reached.update(node.output)
            wanted.update(node.input)
    return reached
