"""Let convolutions and poolings pad on their own what was padded with zeros before them."""

from __future__ import annotations

from onnx import NodeProto, helper

from histoseg_export.graph import Graph, attribute


def fold_pad(graph: Graph) -> int:
    """Fold zero padding of height and width into the convolutions or max poolings that alone use it.

    A max pooling pads with nothing: where no value is below zero, and no window is all padding, its maxima
    are the same.
    """
    changes = 0
    for node in list(graph.nodes):
        rim = _read_rim(node, graph)
        users = graph.consumers(node.output[0])
        if rim is None or not users or node.output[0] == graph.output:
            continue
        if all(_takes(user, node, rim, graph) for user in users):
            for user in users:
                _widen(user, rim)
            graph.rewire(node.output[0], node.input[0])
            graph.nodes.remove(node)
            changes += 1
    return changes


def _read_rim(node: NodeProto, graph: Graph) -> list[int] | None:
    """Return top, left, bottom and right of zero padding in NCHW; `None` for all else."""
    if node.op_type != "Pad" or attribute(node, "mode", b"constant") != b"constant":
        return None
    pads, *more = (graph.constants.get(name) for name in node.input[1:] if name)
    if (
        pads is None
        or pads.shape != (8,)
        or (pads < 0).any()
        or any(value is None or value.any() for value in more)
    ):
        return None
    before, after = pads[:4].tolist(), pads[4:].tolist()
    return None if any(before[:2] + after[:2]) else [*before[2:], *after[2:]]


def _takes(user: NodeProto, node: NodeProto, rim: list[int], graph: Graph) -> bool:
    if attribute(user, "auto_pad", b"NOTSET") != b"NOTSET" or user.input[0] != node.output[0]:
        return False
    if user.op_type == "Conv":
        return node.output[0] not in user.input[1:]
    if user.op_type != "MaxPool" or len(user.output) > 1 or attribute(user, "ceil_mode", 0):
        return False
    before = graph.producer(node.input[0])
    narrow = max(rim) < min(attribute(user, "kernel_shape")) and not any(attribute(user, "pads", [0] * 4))
    return narrow and before is not None and before.op_type == "Relu"


def _widen(user: NodeProto, rim: list[int]) -> None:
    pads = [old + new for old, new in zip(attribute(user, "pads", [0] * 4), rim, strict=True)]
    kept = [item for item in user.attribute if item.name != "pads"]
    del user.attribute[:]
    user.attribute.extend([*kept, helper.make_attribute("pads", pads)])
