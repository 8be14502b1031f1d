"""Move pixels into channels where int8 kernels would idle: transposed and thin convolutions.

onnxruntime has no int8 kernel for ConvTranspose on the CPU, and its fast int8 convolution fills vectors of
16 output channels: a last layer of 2 classes at full size costs as much as one of 16. Both become
convolutions at half the size with four times the channels, and one rearrangement of bytes. Values stay the
same: only zeros are added to sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import NodeProto, helper

from histoseg_export.graph import Graph, attribute
from histoseg_export.int8.subpixel import Folded, fold_folded, fold_plain, fold_transposed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Shapes = dict[str, tuple[int, ...]]

BLOCK = 2
THIN = 8
"""Filters up to which a convolution is folded: four times as many still fit into two vectors."""
# these treat every value alike, and vanish into the convolution before them when that is quantized
_POINTWISE = frozenset({"Clip", "Relu"})


def fold_pixels(graph: Graph, shapes: Shapes) -> int:
    """Fold transposed convolutions and thin convolutions, and unfold where others need the pixels in place.

    Args:
        graph: Changed in place.
        shapes: NCHW shape of every value, batch first.

    Returns:
        How many convolutions were folded.
    """
    plan = _Plan(graph, shapes)
    writer = _Writer(plan)
    for node in graph.nodes:
        writer.add(node)
    graph.nodes = writer.nodes
    return writer.count


@dataclass(frozen=True)
class _Value:
    """The folded form of a value."""

    name: str
    order: NDArray[np.intp]
    """For each folded channel, which of the channels ordered by phase it is."""
    block: int


class _Plan:
    """Decides which values are folded, and who takes them so."""

    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self.graph = graph
        self.shapes = shapes
        self._can: dict[str, bool] = {}

    def can_fold(self, value: str) -> bool:
        """Tell whether a value comes folded at no cost, in blocks of `BLOCK`."""
        if value not in self._can:
            node = self.graph.producer(value)
            self._can[value] = node is not None and self._gives_folded(node)
        return self._can[value]

    def takes_folded(self, node: NodeProto, value: str) -> bool:
        """Tell whether a node is at its best with a folded value."""
        if node.op_type == "Concat":
            return self.joins_folded(node)
        return node.op_type in _POINTWISE or (self.is_thin(node) and node.input[0] == value)

    def joins_folded(self, node: NodeProto) -> bool:
        """Tell whether a `Concat` of channels has folded values to join, and users for the result."""
        users = self.graph.consumers(node.output[0])
        return (
            attribute(node, "axis") in (1, -3)
            and node.output[0] != self.graph.output
            and all(self.can_fold(name) for name in node.input)
            and bool(users)
            and all(self.is_thin(user) for user in users)
        )

    def is_thin(self, node: NodeProto) -> bool:
        """Tell whether a node is a plain convolution of few filters, at an even size that it keeps."""
        if node.op_type != "Conv" or not self._is_constant(node):
            return False
        filters, _, *sides = self.graph.constants[node.input[1]].shape
        reach = [(side - 1) // 2 for side in sides]
        size = self.shapes.get(node.output[0], ())
        return (
            filters <= THIN
            and sides[0] == sides[1]
            and sides[0] % 2 == 1
            and _ints(node, "pads", 0, 4) == [*reach, *reach]
            and _ints(node, "strides", 1, 2) == _ints(node, "dilations", 1, 2) == [1, 1]
            and _is_ungrouped(node)
            and len(size) == 4
            and all(side > 0 and side % BLOCK == 0 for side in size[2:])
        )

    def transposed_stride(self, node: NodeProto) -> int | None:
        """Return the stride of a transposed convolution that enlarges by just that; else `None`."""
        strides = _ints(node, "strides", 1, 2)
        if node.op_type != "ConvTranspose" or not self._is_constant(node) or strides[0] != strides[1]:
            return None
        if attribute(node, "output_shape") is not None:
            return None  # its padding follows from that
        source, result = (self.shapes.get(name, ()) for name in (node.input[0], node.output[0]))
        enlarges = len(source) == len(result) == 4 and all(
            small > 0 and small * strides[0] == large
            for small, large in zip(source[2:], result[2:], strict=True)
        )
        plain = _is_ungrouped(node) and _ints(node, "dilations", 1, 2) == [1, 1]
        return strides[0] if enlarges and plain and strides[0] > 1 else None

    def _gives_folded(self, node: NodeProto) -> bool:
        if node.op_type in _POINTWISE:
            return self.can_fold(node.input[0])
        if node.op_type == "Concat":
            return self.joins_folded(node)
        return self.is_thin(node) or self.transposed_stride(node) == BLOCK

    def _is_constant(self, node: NodeProto) -> bool:
        padded = attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        constant = all(name in self.graph.constants for name in node.input[1:])
        return padded and constant and len(self.graph.constants[node.input[1]].shape) == 4


class _Writer:
    """Writes the nodes anew."""

    def __init__(self, plan: _Plan) -> None:
        self.nodes: list[NodeProto] = []
        self.count = 0
        self._plan = plan
        self._graph = plan.graph
        self._folded: dict[str, _Value] = {}

    def add(self, node: NodeProto) -> None:
        """Write a node in the form that is best for it."""
        stride = self._plan.transposed_stride(node)
        if stride:
            self._write_transposed(node, stride)
        elif self._plan.is_thin(node):
            self._write_thin(node)
        elif node.op_type in _POINTWISE and node.input[0] in self._folded:
            value = self._folded[node.input[0]]
            self._write(node, [value.name, *node.input[1:]], value.order, value.block)
        elif node.op_type == "Concat" and self._plan.joins_folded(node):
            self._write_concat(node)
        else:
            self.nodes.append(node)
            return
        self._unfold_for_others(node.output[0])

    def _write_transposed(self, node: NodeProto, stride: int) -> None:
        weights = self._graph.constants[node.input[1]]
        top, left, *_ = _ints(node, "pads", 0, 4)
        folded = fold_transposed(weights, stride, (top, left))
        self._write_conv(node, node.input[0], folded, weights.shape[1], stride)

    def _write_thin(self, node: NodeProto) -> None:
        weights = self._graph.constants[node.input[1]]
        value = self._folded.get(node.input[0])
        if value is None or value.block != BLOCK:
            folded, source = fold_plain(weights, BLOCK), node.input[0]
        else:
            folded, source = fold_folded(weights, BLOCK), value.name
            folded = Folded(folded.weights[:, value.order], folded.pads)
        self._write_conv(node, source, folded, weights.shape[0], BLOCK)

    def _write_conv(self, node: NodeProto, source: str, folded: Folded, filters: int, block: int) -> None:
        names = [self._graph.add_constant(folded.weights, node.input[1])]
        if len(node.input) > 2:
            bias = np.tile(self._graph.constants[node.input[2]], block * block)
            names.append(self._graph.add_constant(bias, node.input[2]))
        sides = list(folded.weights.shape[2:])
        conv = helper.make_node("Conv", [source, *names], list(node.output), name=node.name)
        for name, values in (("kernel_shape", sides), ("pads", folded.pads), ("strides", folded.strides)):
            conv.attribute.append(helper.make_attribute(name, values))
        self._write(conv, [source, *names], np.arange(block * block * filters), block)
        self.count += 1

    def _write_concat(self, node: NodeProto) -> None:
        """Join folded values one after the other; the order says where their channels went."""
        values = [self._folded[name] for name in node.input]
        lengths = [len(value.order) // BLOCK**2 for value in values]
        orders, start = [], 0
        for value, length in zip(values, lengths, strict=True):
            phase, channel = np.divmod(value.order, length)
            orders.append(phase * sum(lengths) + start + channel)
            start += length
        self._write(node, [value.name for value in values], np.concatenate(orders), BLOCK)

    def _write(self, node: NodeProto, inputs: list[str], order: NDArray[np.intp], block: int) -> None:
        """Write a copy: the plan still reads the node."""
        result, copy = node.output[0], NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = inputs
        copy.output[0] = f"{result}/folded"
        self._folded[result] = _Value(copy.output[0], order, block)
        self.nodes.append(copy)

    def _unfold_for_others(self, value: str) -> None:
        """Put the pixels in place where somebody needs them so."""
        folded = self._folded[value]
        users = self._graph.consumers(value)
        if value == self._graph.output or any(not self._takes(user, value, folded) for user in users):
            self.nodes += _unfold(value, folded, self._graph, self._plan.shapes[value])

    def _takes(self, user: NodeProto, value: str, folded: _Value) -> bool:
        if user.op_type in _POINTWISE:
            return True
        return folded.block == BLOCK and self._plan.takes_folded(user, value)


def _unfold(value: str, folded: _Value, graph: Graph, shape: tuple[int, ...]) -> list[NodeProto]:
    """Return the nodes that move pixels from channels to their places.

    They are written channels last, where int8 convolutions work, so that whole pixels move: onnxruntime takes
    the outer transposes away.
    """
    _, channels, height, width = shape
    block = folded.block
    assert (folded.order == np.arange(len(folded.order))).all()
    split = graph.add_constant(np.array([0, 0, 0, block, block * channels], np.int64), value)
    join = graph.add_constant(np.array([0, height, width, channels], np.int64), value)
    values = [folded.name, *(f"{value}/unfold_{index}" for index in range(4)), value]
    steps = ([0, 2, 3, 1], split, [0, 1, 3, 2, 4], join, [0, 3, 1, 2])
    nodes = []
    for step, source, result in zip(steps, values[:-1], values[1:], strict=True):
        if isinstance(step, str):
            nodes.append(helper.make_node("Reshape", [source, step], [result], name=f"{result}/Reshape"))
        else:
            nodes.append(
                helper.make_node("Transpose", [source], [result], name=f"{result}/Transpose", perm=step)
            )
    return nodes


def _is_ungrouped(node: NodeProto) -> bool:
    return int(attribute(node, "group", 1)) == 1


def _ints(node: NodeProto, name: str, default: int, length: int) -> list[int]:
    return list(attribute(node, name, [default] * length))
