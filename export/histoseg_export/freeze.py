"""Trace a function of TensorFlow into one graph without variables and without functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Frozen:
    """A graph, and the names of the tensors at its ends."""

    graph: Any
    """A `GraphDef`."""
    image: str
    result: str


def freeze_graph(run: Callable[[Any], Any], spec: Any) -> Frozen:
    """Trace a function of one tensor; all that it captures becomes constant.

    `tf2onnx.convert.from_function` takes captured tensors, such as the mean of a `Normalization`, for inputs.
    TensorFlow's own `convert_variables_to_constants_v2` makes a function of the result, which takes eight
    times the memory of the weights.

    Args:
        run: What to trace.
        spec: The `tf.TensorSpec` of its argument.
    """
    import tensorflow as tf
    from tf2onnx.tf_loader import convert_variables_to_constants_large_model

    function = tf.function(run, input_signature=[spec], autograph=False)
    with _functions_inlined():
        traced = function.get_concrete_function()
        graph = convert_variables_to_constants_large_model(traced)
    return Frozen(graph, traced.inputs[0].name, traced.outputs[0].name)


@contextmanager
def _functions_inlined() -> Iterator[None]:
    """Trace through functions that Keras compiles with XLA, such as grouped convolutions, which hide it."""
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)
