"""Lower a frozen graph of TensorFlow to ONNX with tf2onnx, and few copies of the weights on the way."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from typing import Any

import onnx

from histoseg_export.freeze import Frozen

# smaller constants are shapes and scales, too, whose values say what a graph can become
_LARGE_BYTES = 2**14
# looking for garbage takes a fifth of a second
_COLLECTED_BYTES = 2**24
# what tf2onnx's optimizers trip over in graphs that they were not written for
_OPTIMIZER_ERRORS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def lower_graph(frozen: Frozen, *, opset: int) -> onnx.ModelProto:
    """Convert what `freeze_graph` returned, as `tf2onnx.convert.from_graph_def` does, in less memory.

    That function copies the graph before each of its optimizers, and the copies refer to themselves: they
    stay until Python next looks for such garbage, which so few objects seldom make it do.

    Args:
        frozen: A graph of one input and one output.
        opset: Of ONNX.

    Returns:
        A model that is not checked yet; operations that ONNX lacks are passed through as they are.

    Raises:
        Exception: tf2onnx raises ValueError, RuntimeError, KeyError and its own.
    """
    ends = [frozen.image, frozen.result]
    is_large = frozen.graph.ByteSize() > _COLLECTED_BYTES
    folded = _fold_graph(frozen)
    del frozen  # with its weights, if the caller keeps none
    graph = _read_graph(folded, ends, opset)
    if is_large:
        gc.collect()  # TensorFlow's graphs, and models that the caller let go, refer to themselves
    model = _optimize(graph, lambda: _read_graph(folded, ends, opset)).make_model("histoseg")
    del graph
    if is_large:
        gc.collect()
    assert isinstance(model, onnx.ModelProto)
    return model


def _optimize(graph: Any, read_again: Callable[[], Any]) -> Any:
    """Run tf2onnx's optimizers on one graph, or where one of them fails, each on a copy of its own."""
    from tf2onnx.optimizer import optimize_graph

    try:
        return optimize_graph(_share_constants(graph), catch_errors=False)
    except _OPTIMIZER_ERRORS:
        # one failed and left half a graph: the way that copies leaves that one out
        return optimize_graph(read_again(), catch_errors=True)


def _fold_graph(frozen: Frozen) -> Any:
    """Return a `GraphDef` as tf2onnx wants it, folded where that takes no large constants.

    TensorFlow holds ten copies of every constant meanwhile, so the large ones stay outside; what it would
    have folded of them, tf2onnx folds.
    """
    import tensorflow as tf
    from tf2onnx.tf_loader import tf_optimize

    weights = {node.name: node for node in frozen.graph.node if _is_large(node)}
    with tf.Graph().as_default():
        folded = tf_optimize([frozen.image], [frozen.result], _hollow_out(frozen.graph, weights))
    for node in folded.node:
        if node.name in weights:
            node.CopyFrom(weights[node.name])
    return folded


def _is_large(node: Any) -> bool:
    return node.op == "Const" and len(node.attr["value"].tensor.tensor_content) > _LARGE_BYTES


def _hollow_out(graph: Any, weights: Collection[str]) -> Any:
    """Return a `GraphDef` with inputs of the same shapes in place of some constants."""
    hollow = type(graph)(versions=graph.versions, library=graph.library)
    for node in graph.node:
        if node.name not in weights:
            hollow.node.append(node)
            continue
        entry = hollow.node.add(name=node.name, op="Placeholder")
        entry.attr["dtype"].type = node.attr["dtype"].type
        entry.attr["shape"].shape.CopyFrom(node.attr["value"].tensor.tensor_shape)
    return hollow


def _read_graph(folded: Any, ends: list[str], opset: int) -> Any:
    """Return tf2onnx's own graph of a `GraphDef`, of operations of ONNX, before it is optimized."""
    import tensorflow as tf
    from tf2onnx.tfonnx import process_tf_graph

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(folded, name="")
        return process_tf_graph(
            graph,
            continue_on_error=True,
            opset=opset,
            input_names=ends[:1],
            output_names=ends[1:],
        )


def _share_constants(graph: Any) -> Any:
    """Keep a graph of tf2onnx from copying its constants into their nodes after every optimizer.

    Such a copy stays even when the next takes its place: a message's memory grows until it is dropped whole.
    """

    def update_others(storage: Any = None) -> None:
        for node in graph.get_nodes():
            if not node.is_const():
                node.update_proto(storage)

    graph.update_proto = update_others
    return graph
