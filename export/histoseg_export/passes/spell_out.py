"""Write what TensorFlow has and ONNX lacks in operations of ONNX; the values stay the same."""

from __future__ import annotations

import numpy as np
from onnx import helper

from histoseg_export.graph import Graph


def spell_out(graph: Graph) -> int:
    """Turn `Erfc`, of which the exact GELU is made, into `1 - Erf`."""
    changes = 0
    for node in list(graph.nodes):
        if node.op_type != "Erfc":
            continue
        inner = f"{node.output[0]}/erf"
        one = graph.add_constant(np.ones((), np.float32), node.name)
        erf = helper.make_node("Erf", [node.input[0]], [inner], name=f"{node.name}/erf")
        graph.nodes.insert(graph.nodes.index(node), erf)
        node.op_type, node.domain = "Sub", ""
        node.input[:] = [one, inner]
        del node.attribute[:]
        changes += 1
    return changes
