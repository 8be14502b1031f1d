"""Fold a multiplication before a convolution into its weights.

Zero padding is blind to a scale, so the result is exact; a shift is not folded, because the padding is not
shifted with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto

from histoseg_export.graph import Graph, attribute, constant_operand, data_input, per_channel

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fold_scale(graph: Graph) -> int:
    """Fold constant multiplications whose users are all convolutions into the weights of these."""
    changes = 0
    for node in list(graph.nodes):
        values = constant_operand(node, graph) if node.op_type == "Mul" else None
        users = graph.consumers(node.output[0])
        if values is None or not users or not all(_is_foldable(user, node, graph) for user in users):
            continue
        scales = [_input_scale(user, values, graph) for user in users]
        if any(scale is None for scale in scales):
            continue
        for user, scale in zip(users, scales, strict=True):
            assert scale is not None
            weights = graph.constants[user.input[1]] * scale
            user.input[1] = graph.add_constant(weights.astype(np.float32), user.input[1])
        graph.rewire(node.output[0], data_input(node, graph))
        graph.nodes.remove(node)
        changes += 1
    return changes


def _is_foldable(user: NodeProto, node: NodeProto, graph: Graph) -> bool:
    return user.op_type == "Conv" and user.input[0] == node.output[0] and user.input[1] in graph.constants


def _input_scale(user: NodeProto, values: NDArray[Any], graph: Graph) -> NDArray[Any] | None:
    """Return the scale of each input channel, shaped for weights `(out, in / group, h, w)`."""
    weights = graph.constants[user.input[1]]
    groups = int(attribute(user, "group", 1))
    scale = per_channel(values, weights.shape[1] * groups)
    if scale is None:
        return None
    by_group = scale.astype(np.float64).reshape(groups, 1, -1)
    filters = weights.shape[0] // groups
    return np.broadcast_to(by_group, (groups, filters, weights.shape[1])).reshape((*weights.shape[:2], 1, 1))
