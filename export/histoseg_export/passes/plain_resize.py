"""Say nearest-neighbour enlargement by whole factors in the one way that every runtime has fast code for."""

from __future__ import annotations

from onnx import helper

from histoseg_export.graph import Graph, attribute


def plain_resize(graph: Graph) -> int:
    """Take half-pixel centres off nearest-neighbour `Resize` nodes with whole scales.

    `floor((i + 0.5) / k)` is `floor(i / k)` for a whole `k`. `tf_half_pixel_for_nn` is deprecated, and other
    runtimes than onnxruntime do not have it.
    """
    changes = 0
    for node in graph.nodes:
        if node.op_type != "Resize" or attribute(node, "mode", b"nearest") != b"nearest":
            continue
        scales = graph.constants.get(node.input[2]) if len(node.input) == 3 else None
        place = attribute(node, "coordinate_transformation_mode", b"half_pixel")
        half = place in (b"tf_half_pixel_for_nn", b"half_pixel")
        if scales is None or not half or (scales < 1).any() or (scales % 1 != 0).any():
            continue
        kept = [a for a in node.attribute if a.name not in ("coordinate_transformation_mode", "nearest_mode")]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        node.attribute.append(helper.make_attribute("nearest_mode", "floor"))
        changes += 1
    return changes
