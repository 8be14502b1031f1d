"""An ONNX graph that can be edited: who makes a value, who uses it, which values are constant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray

NHWC_TO_NCHW = [0, 3, 1, 2]
NCHW_TO_NHWC = [0, 2, 3, 1]


class Graph:
    """Nodes in topological order, and constants as arrays. Changes are written back by `store`."""

    def __init__(self, proto: GraphProto) -> None:
        """Read the nodes and constants of `proto`."""
        self._proto = proto
        self.nodes: list[NodeProto] = list(proto.node)
        self.constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer
        }
        self.input = proto.input[0].name
        self.output = proto.output[0].name
        self._made = 0

    def producer(self, value: str) -> NodeProto | None:
        """Return the node that makes `value`; `None` for the input and constants."""
        return next((node for node in self.nodes if value in node.output), None)

    def consumers(self, value: str) -> list[NodeProto]:
        """Return the nodes that use `value`."""
        return [node for node in self.nodes if value in iter_used(node)]

    def follower(self, node: NodeProto) -> NodeProto | None:
        """Return the one node that uses `node`'s output; `None` when others see it, too."""
        users = self.consumers(node.output[0])
        return users[0] if len(users) == 1 and node.output[0] != self.output else None

    def add_constant(self, values: NDArray[Any], like: str) -> str:
        """Store an array under a new name, in the scope of the constant it replaces, and return the name."""
        self._made += 1
        name = f"{like}/folded_{self._made}"
        assert name not in self.constants
        self.constants[name] = np.ascontiguousarray(values)
        return name

    def remove_after(self, node: NodeProto, after: NodeProto) -> None:
        """Take out `after`, the only user of `node`, which now makes the value that `after` made."""
        self.nodes.remove(after)
        node.output[0] = after.output[0]

    def rewire(self, old: str, new: str) -> None:
        """Make every user of `old` use `new`."""
        for user in self.nodes:
            rename_inputs(user, {old: new})

    def swap(self, first: NodeProto, second: NodeProto) -> None:
        """Exchange two neighbours: `second` alone uses `first`'s output, each as its data input."""
        middle, end = first.output[0], second.output[0]
        second.input[_position(second, middle)] = data_input(first, self)
        first.input[_position(first, data_input(first, self))] = middle
        second.output[0], first.output[0] = middle, end
        i, j = self.nodes.index(first), self.nodes.index(second)
        self.nodes[i], self.nodes[j] = second, first

    def store(self) -> None:
        """Write nodes and used constants back, in the order of their use.

        Once is enough: what a message held before stays in memory until the whole message goes.
        """
        self.drop_unused()
        del self._proto.node[:]
        self._proto.node.extend(self.nodes)
        del self._proto.initializer[:]
        names = (name for node in self.nodes for name in iter_used(node))
        used = dict.fromkeys(name for name in names if name in self.constants)
        self._proto.initializer.extend(numpy_helper.from_array(self.constants[name], name) for name in used)
        del self._proto.value_info[:]  # shapes inside are inferred again by who needs them

    def drop_unused(self) -> None:
        """Take out the nodes that nothing uses."""
        wanted, kept = {self.output}, []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                kept.append(node)
                wanted.update(iter_used(node))
        self.nodes = kept[::-1]


def iter_used(node: NodeProto) -> Iterator[str]:
    """Yield the values that a node uses, and all that the body of a loop or branch uses."""
    yield from node.input
    for body in _iter_bodies(node):
        for inner in body.node:
            yield from iter_used(inner)


def rename_inputs(node: NodeProto, names: Mapping[str, str]) -> None:
    """Make a node, and the bodies in it, use other values; what `names` does not hold stays."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for body in _iter_bodies(node):
        for inner in body.node:
            rename_inputs(inner, names)


def data_input(node: NodeProto, graph: Graph) -> str:
    """Return the one input that is not constant."""
    return str(next(name for name in node.input if name and name not in graph.constants))


def constant_operand(node: NodeProto, graph: Graph) -> NDArray[Any] | None:
    """Return the constant of a two-operand node such as `Mul`; `None` when it has none."""
    if len(node.input) != 2:
        return None
    found = [name for name in node.input if name in graph.constants]
    return graph.constants[found[0]] if len(found) == 1 else None


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Return an attribute's value."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def per_channel(values: NDArray[Any], channels: int) -> NDArray[Any] | None:
    """Return the `(channels,)` form of a constant that broadcasts over NCHW; `None` if it varies in space."""
    if values.ndim > 4:
        return None
    shape = (1,) * (4 - values.ndim) + values.shape
    if shape[0] != 1 or shape[1] not in (1, channels) or shape[2:] != (1, 1):
        return None
    return np.broadcast_to(values.reshape(-1), (channels,))


def _iter_bodies(node: NodeProto) -> Iterator[GraphProto]:
    return (item.g for item in node.attribute if item.type == AttributeProto.GRAPH)


def _position(node: NodeProto, value: str) -> int:
    return list(node.input).index(value)
