"""Read off an ONNX graph by how much the input must shift for all of its maps to shift by whole pixels."""

from __future__ import annotations

from fractions import Fraction
from math import lcm

import onnx
from onnx import NodeProto

from histoseg_export.graph import attribute

_ENLARGING = frozenset({"ConvTranspose", "DepthToSpace"})
_PLACE_STRIDE = 4
_CONTEXT_SIDE = 8
"""A single stride above the first, down to maps smaller than the second, leaves context, not places."""

Place = Fraction | None
"""Input pixels to one pixel of a map; `None` where a map has lost its places."""


def read_stride(model: onnx.ModelProto) -> int:
    """Return the least common multiple of the strides of a graph's feature maps.

    Strides multiply along the graph whatever the size of the maps, so that a small tile hides none of them.
    Global pooling, and pooling into a few cells as in PSPNet, keeps no places and does not count.

    Args:
        model: A graph in NCHW.
    """
    shapes = _read_shapes(model)
    places: dict[str, Place] = {value.name: Fraction(1) for value in model.graph.input}
    found = {1}
    for node in model.graph.node:
        known = [places[name] for name in node.input if places.get(name) is not None]
        place = _follow(node, max((p for p in known if p is not None), default=None), shapes)
        places.update(dict.fromkeys(node.output, place))
        if place is not None and place >= 1 and place.denominator == 1:
            found.add(int(place))
    return lcm(*found)


def _follow(node: NodeProto, place: Place, shapes: dict[str, list[int]]) -> Place:
    """Return the place of a node's output, given that of its inputs."""
    if place is None or node.op_type.startswith("Global"):
        return None
    if node.op_type == "Resize":
        return _follow_resize(node, place, shapes)
    stride = lcm(*(attribute(node, "strides") or [attribute(node, "blocksize", 1)]))
    if node.op_type in _ENLARGING:
        return place / stride
    sides = shapes.get(node.output[0], [])[2:]
    few = bool(sides) and 0 < min(sides) < _CONTEXT_SIDE
    return None if stride > _PLACE_STRIDE and few else place * stride


def _follow_resize(node: NodeProto, place: Fraction, shapes: dict[str, list[int]]) -> Place:
    before, after = (shapes.get(name, []) for name in (node.input[0], node.output[0]))
    if len(before) != 4 or len(after) != 4 or min(before[2:] + after[2:]) < 1:
        return place
    return None if before[2] == before[3] == 1 else place * Fraction(before[2], after[2])


def _read_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in values}
