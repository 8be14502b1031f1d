"""Cut a piece out of a graph and run it alone, to see what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from histoseg_export.graph import Graph, attribute

if TYPE_CHECKING:
    from numpy.typing import NDArray

Shapes = dict[str, tuple[int | None, ...]]
"""Of each value whose rank is known; `None` where a size is not."""

_OPSET = 17
_IR_VERSION = 8
# constants up to this are shapes and scales, which say what other shapes are
_FEW = 64


@dataclass(frozen=True)
class Piece:
    """Some nodes, the constants that they use, and the values to take from them."""

    nodes: list[NodeProto]
    constants: dict[str, NDArray[Any]]
    outputs: list[str]


def sketch_graph(graph: Graph) -> onnx.ModelProto:
    """Return a model of the same shapes that has no large constants: it takes them as inputs."""
    small = {name: values for name, values in graph.constants.items() if values.size <= _FEW}
    large = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
        for name, values in graph.constants.items()
        if name not in small
    ]
    body = helper.make_graph(
        graph.nodes,
        "shapes",
        [*graph._proto.input, *large],
        list(graph._proto.output),
        [_to_tensor(name, values) for name, values in small.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def infer_shapes(graph: Graph) -> Shapes:
    """Return the shapes inside a graph, as far as ONNX infers them."""
    inferred = onnx.shape_inference.infer_shapes(sketch_graph(graph), data_prop=True).graph
    found: Shapes = {name: tuple(values.shape) for name, values in graph.constants.items()}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            found[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim
            )
    return found


def cut_piece(
    graph: Graph, outputs: list[str], inputs: set[str], shapes: Shapes, *, images: int
) -> Piece | None:
    """Return all that makes some values out of others; `None` when they are made of anything else.

    Args:
        graph: The whole.
        outputs: What the piece gives.
        inputs: What it takes.
        shapes: Of the whole.
        images: The batch size of the piece: asking for a shape becomes a constant.
    """
    wanted, nodes, constants = set(outputs), [], {}
    for node in reversed(graph.nodes):
        made = wanted.intersection(node.output) - inputs
        if not made:
            continue
        if node.op_type in ("Shape", "Size"):
            values = _read_shape(node, shapes, images)
            if values is None:
                return None
            constants[node.output[0]] = values
            continue
        nodes.append(_keep_outputs(node, made))
        wanted.update(name for name in node.input if name)
    made_here = {name for node in nodes for name in node.output} | set(constants)
    rest = wanted - made_here - inputs
    constants |= {name: graph.constants[name] for name in rest if name in graph.constants}
    return Piece(nodes[::-1], constants, outputs) if rest <= set(constants) else None


def run_piece(piece: Piece, values: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a piece with onnxruntime on the CPU.

    Args:
        piece: Nodes of opset 17.
        values: `float32`, for each of its inputs.

    Returns:
        Its outputs by name.
    """
    import onnxruntime

    inputs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v.shape) for k, v in values.items()]
    outputs = [helper.make_empty_tensor_value_info(name) for name in piece.outputs]
    tensors = [_to_tensor(name, array) for name, array in piece.constants.items()]
    body = helper.make_graph(piece.nodes, "piece", inputs, outputs, tensors)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(piece.outputs, values)
    return {name: np.asarray(array) for name, array in zip(piece.outputs, found, strict=True)}


def _read_shape(node: NodeProto, shapes: Shapes, images: int) -> NDArray[np.int64] | None:
    shape = shapes.get(node.input[0])
    if not shape or None in shape[1:]:
        return None
    whole = np.array([images if shape[0] is None else shape[0], *shape[1:]], np.int64)
    if node.op_type == "Size":
        return np.asarray(whole.prod(), np.int64)
    return whole[attribute(node, "start", 0) : attribute(node, "end", None)]


def _keep_outputs(node: NodeProto, made: set[str]) -> NodeProto:
    """Return a node whose other outputs carry other names, since a piece may take these from outside."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [name if name in made else f"{name}/unused" for name in node.output]
    return copy


def _to_tensor(name: str, values: NDArray[Any]) -> TensorProto:
    return numpy_helper.from_array(values, name)
