"""Tell from a network's first operations whether it normalises its images itself.

A network that divides by 255, or subtracts a mean of 120, wants bytes; normalising them before would do it
twice, and nothing would say so. The traced graph is looked at, where all ways of writing this are the same:
multiplications and additions up to the first operation of another kind are one line, `a x + b`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.errors import ModelError
from histoseg_export.freeze import freeze_graph
from histoseg_train.kerasfile import summarize_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOW_RANGE = 2.0
"""A line that crosses 0 above this is for images of 0 to 255, not of 0 to 1 or -1 to 1."""
SMALL_SCALE = 0.01
"""A slope below this brings 255 to the order of 1."""

_PASSIVE = frozenset(
    {"Cast", "GatherV2", "Identity", "MirrorPad", "Pad", "PadV2", "Reshape", "ReverseV2", "StridedSlice"}
    | {"Transpose"}
)


def explain_own_scaling(model: Any, tile: tuple[int, int]) -> str | None:
    """Return what a network does to images of 0 to 255 before anything else.

    Args:
        model: A model of Keras 3 or `tf_keras`.
        tile: Width and height, for a network of no size of its own.

    Returns:
        Words such as `divides them by 255`; `None` where it does nothing that only bytes need.

    Raises:
        ModelError: The network does not take such tiles, or cannot be run.
    """
    dtype = str(getattr(model.inputs[0].dtype, "name", model.inputs[0].dtype))
    if "int" in dtype:
        return f"takes {dtype} pixels"
    import tensorflow as tf

    from histoseg_export.retarget import fix_size

    fixed = fix_size(model, tile) if None in model.inputs[0].shape[1:] else model
    spec = tf.TensorSpec((None, *fixed.inputs[0].shape[1:]), tf.float32)
    try:
        frozen = freeze_graph(lambda image: fixed(image, training=False), spec)
    except Exception as error:  # layers raise what they like
        raise ModelError(
            f"the network cannot be run ({summarize_error(error)}), expected one that Keras itself can "
            "predict with; run it there first"
        ) from error
    slope, shift = _read_line(frozen.graph, _node_of(frozen.image))
    crossing = -shift / slope if slope else 0.0
    if crossing > LOW_RANGE:
        return f"takes off a mean of {crossing:.0f}"
    return f"divides them by {1 / abs(slope):.6g}" if 0 < abs(slope) <= SMALL_SCALE else None


def _read_line(graph: Any, value: str) -> tuple[float, float]:
    """Return slope and shift, averaged over channels, of all that comes before the first other operation."""
    slope, shift = 1.0, 0.0
    while True:
        users = [node for node in graph.node if value in _data_inputs(node)]
        if len(users) != 1:
            return slope, shift
        step = (1.0, 0.0) if users[0].op in _PASSIVE else _read_step(users[0], graph, value)
        if step is None:
            return slope, shift
        slope, shift = slope * step[0], shift * step[0] + step[1]
        value = users[0].name


def _read_step(node: Any, graph: Any, value: str) -> tuple[float, float] | None:
    """Return slope and shift of one operation; `None` where it is none of a line."""
    others = [_constant(graph, name) for name in _data_inputs(node) if name != value]
    if not all(other is not None and other.size for other in others):
        return None
    if node.op.startswith("FusedBatchNorm") and len(others) == 4:
        scale, offset, mean, variance = (np.asarray(other) for other in others)
        steps = scale / np.sqrt(variance + node.attr["epsilon"].f)
        return float(steps.mean()), float((offset - mean * steps).mean())
    constant = float(np.mean(others[0])) if len(others) == 1 and others[0] is not None else None
    if constant is None:
        return None
    first = _data_inputs(node)[0] == value
    steps_by_op = {
        "Add": (1.0, constant),
        "AddV2": (1.0, constant),
        "BiasAdd": (1.0, constant),
        "Mul": (constant, 0.0),
        "Sub": (1.0, -constant) if first else (-1.0, constant),
        "RealDiv": (1 / constant, 0.0) if first and constant else None,
    }
    return steps_by_op.get(node.op)


def _constant(graph: Any, name: str) -> NDArray[Any] | None:
    """Return the value of a node that does not depend on the image; `None` for others."""
    import tensorflow as tf

    part = tf.compat.v1.GraphDef(node=_before(graph, name), versions=graph.versions)
    if any(node.op == "Placeholder" for node in part.node):
        return None
    with tf.Graph().as_default() as alone, tf.compat.v1.Session(graph=alone) as session:
        tf.graph_util.import_graph_def(part, name="")
        return np.asarray(session.run(f"{name}:0"), np.float64)


def _before(graph: Any, name: str) -> list[Any]:
    """Return copies of a node and of all whose values it depends on, without what only comes before."""
    nodes, found, waiting = {node.name: node for node in graph.node}, dict[str, Any](), [name]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found[current] = _drop_control(nodes[current])
            waiting += _data_inputs(nodes[current])
    return list(found.values())


def _drop_control(node: Any) -> Any:
    """Return a copy of a node that waits for no other: in a SavedModel constants wait for the image."""
    copy = type(node)()
    copy.CopyFrom(node)
    kept = [name for name in node.input if not name.startswith("^")]
    del copy.input[:]
    copy.input.extend(kept)
    return copy


def _node_of(tensor: str) -> str:
    return tensor.partition(":")[0]


def _data_inputs(node: Any) -> list[str]:
    """Return the nodes whose values a node takes; those that only come before it are marked."""
    return [_node_of(name) for name in node.input if not name.startswith("^")]
