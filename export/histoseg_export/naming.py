"""Name an ONNX graph's nodes and values after the Keras layers, the same way on every export.

Converters number their names by what else the process did before; these names depend on the graph alone.
"""

from __future__ import annotations

from onnx import NodeProto

from histoseg_export.describe import INPUT_NAME, OUTPUT_NAME
from histoseg_export.graph import Graph, iter_used, rename_inputs

LAYER_MARK = "."
"""Ends a layer's name while it is traced: TensorFlow appends numbers that look like part of the name."""


def rename_graph(graph: Graph) -> None:
    """Call nodes `layer/Op`, their outputs alike, and constants after their first user.

    Args:
        graph: Its input becomes `image`, its output `probabilities`. Names of layers end in `LAYER_MARK`.
    """
    values = {graph.input: INPUT_NAME, graph.output: OUTPUT_NAME, "": ""}
    taken: set[str] = {INPUT_NAME, OUTPUT_NAME}
    for node in graph.nodes:
        node.name = _unique(f"{find_layer(node, graph)}/{node.op_type}", taken)
        node.doc_string = ""
        for index, value in enumerate(node.output):
            values.setdefault(value, f"{node.name}:{index}")
        for index, value in enumerate(iter_used(node)):
            if value in graph.constants and value not in values:
                values[value] = _unique(f"{node.name}.{index}", taken)
    for node in graph.nodes:
        rename_inputs(node, values)
        node.output[:] = [values[name] for name in node.output]
    graph.constants = {values[old]: array for old, array in graph.constants.items() if old in values}
    graph.input, graph.output = INPUT_NAME, OUTPUT_NAME


def find_layer(node: NodeProto, graph: Graph) -> str:
    """Return the innermost layer in a traced name such as `net_1/conv_a._1/convolution`.

    The name of a node's weights comes first: a fused node may carry another layer's name.
    """
    weights = [name for name in node.input if name in graph.constants]
    for traced in (*weights, node.name):
        for segment in reversed(traced.split("/")):
            if LAYER_MARK in segment:
                return str(segment.rpartition(LAYER_MARK)[0])
    return "graph"


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate
