"""Fill up convolutions to whole vectors: onnxruntime's fast int8 kernel needs multiples of 16 filters.

The MLAS kernel for symmetric weights packs 16 output channels (AVX-512) and takes no others; what does not
fit runs a general product that is two to four times slower. Zeros are added and cut off again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto, helper

from histoseg_export.graph import Graph, attribute

if TYPE_CHECKING:
    from collections.abc import Collection

VECTOR = 16


def pad_channels(graph: Graph, kept: Collection[str] = ()) -> dict[str, str]:
    """Add filters of zeros to convolutions, and cut their results off.

    Args:
        graph: Changed in place.
        kept: Names of nodes to leave as they are: float kernels gain nothing.

    Returns:
        For each new value, the value whose range it has.
    """
    ranges: dict[str, str] = {}
    for node in list(graph.nodes):
        if node.op_type == "Conv" and node.name not in kept and _is_padable(node, graph):
            ranges |= _pad(node, graph)
    return ranges


def _is_padable(node: NodeProto, graph: Graph) -> bool:
    constant = all(name in graph.constants for name in node.input[1:])
    if not constant or int(attribute(node, "group", 1)) != 1 or node.output[0] == graph.output:
        return False
    return bool(graph.constants[node.input[1]].shape[0] % VECTOR)


def _pad(node: NodeProto, graph: Graph) -> dict[str, str]:
    filters = graph.constants[node.input[1]].shape[0]
    for index, name in list(enumerate(node.input))[1:]:
        values = graph.constants[name]
        rest = [(0, -filters % VECTOR)] + [(0, 0)] * (values.ndim - 1)
        node.input[index] = graph.add_constant(np.pad(values, rest), name)
    last, ranges = node, {}
    follower = graph.follower(node)
    if follower is not None and follower.op_type in ("Clip", "Relu"):
        ranges[f"{node.output[0]}/padded"] = node.output[0]
        node.output[0] = follower.input[0] = f"{node.output[0]}/padded"
        last = follower
    value = last.output[0]
    ends = {"start": [0], "end": [filters], "axis": [1]}
    names = [graph.add_constant(np.array(place, np.int64), f"{value}/{end}") for end, place in ends.items()]
    last.output[0] = f"{value}/padded"
    ranges[last.output[0]] = value
    cut = helper.make_node("Slice", [last.output[0], *names], [value], name=f"{value}/Slice")
    graph.nodes.insert(graph.nodes.index(last) + 1, cut)
    return ranges
