"""Speed of unpooling by comparisons against the stock conversion of pooling indices, in one process.

    python benchmarks/pool_indices.py [--tile 256] [--width 64] [--rounds 15] [--threads 2]

A SegNet whose layers call `tf.nn.max_pool_with_argmax` and `tf.scatter_nd`, as most published ones do, is
converted by tf2onnx alone and once more with the exporter's passes: the same weights, the same input, equal
outputs. First each level's pooling and unpooling alone, between two cheap convolutions; then the whole
network, where convolutions take most of the time. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx

from histoseg_export.graph import Graph
from histoseg_export.passes import lower_pool_indices, sink_transpose

CONVOLUTIONS = (2, 2, 3, 3, 3)
WARM_UP = 2

Session = onnxruntime.InferenceSession


def unpool(values: Any, indices: Any, shape: Any) -> Any:
    """Scatter as published layers do: batch, row, column and channel from an index within the image."""
    shape = tf.cast(shape, tf.int64)
    ones = tf.ones_like(indices)
    batch = ones * tf.reshape(tf.range(shape[0]), [-1, 1, 1, 1])
    row = indices // (shape[2] * shape[3])
    column = indices // shape[3] % shape[2]
    channel = ones * tf.range(shape[3])
    places = tf.transpose(tf.reshape(tf.stack([batch, row, column, channel]), [4, tf.size(values)]))
    return tf.scatter_nd(places, tf.reshape(values, [-1]), shape)


def build_stage(tile: int, filters: int) -> Callable[[Any], Any]:
    """Return one level's pooling and unpooling between two convolutions."""
    convolve = make_convolve()

    def stage(image: Any) -> Any:
        features = tf.nn.relu(convolve(image, filters, size=1))
        pooled, indices = tf.nn.max_pool_with_argmax(features, 2, 2, "SAME")
        raised = tf.ensure_shape(unpool(pooled, indices, tf.shape(features)), [None, tile, tile, filters])
        return convolve(raised, 2, size=1)

    return stage


def build_network(tile: int, width: int) -> Callable[[Any], Any]:
    """Return a SegNet of thirteen convolutions on each side."""
    convolve = make_convolve()

    def network(image: Any) -> Any:
        features, levels = image, []
        for level, count in enumerate(CONVOLUTIONS):
            for _ in range(count):
                features = tf.nn.relu(convolve(features, width * min(2**level, 8)))
            shape = tf.shape(features)
            features, indices = tf.nn.max_pool_with_argmax(features, 2, 2, "SAME")
            levels.append((indices, shape))
        for level, count in reversed(list(enumerate(CONVOLUTIONS))):
            filters, side = width * min(2**level, 8), tile // 2**level
            features = tf.ensure_shape(unpool(features, *levels[level]), [None, side, side, filters])
            for index in range(count):
                last = index == count - 1
                features = tf.nn.relu(
                    convolve(features, width * min(2 ** (level - last), 8) if level else filters)
                )
        return convolve(features, 2)

    return network


def make_convolve() -> Callable[..., Any]:
    rng = np.random.default_rng(0)

    def convolve(features: Any, filters: int, size: int = 3) -> Any:
        inputs = int(features.shape[-1])
        kernel = rng.normal(0, (2 / (inputs * size**2)) ** 0.5, (size, size, inputs, filters))
        return tf.nn.conv2d(features, kernel.astype(np.float32), 1, "SAME")

    return convolve


def convert(build: Callable[[Any], Any], tile: int, threads: int) -> tuple[Session, Session]:
    """Return sessions of the stock conversion and of the lowered one."""
    signature = [tf.TensorSpec((None, tile, tile, 3), tf.float32, name="image")]
    function = tf.function(build, input_signature=signature, autograph=False)
    model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=17)
    model.ir_version = 8
    stock = open_session(model, threads)
    graph = Graph(model.graph)
    lowered = lower_pool_indices(graph)
    sink_transpose(graph)
    graph.store()
    onnx.checker.check_model(model, full_check=True)
    assert lowered, "nothing was lowered"
    return stock, open_session(model, threads)


def open_session(model: onnx.ModelProto, threads: int) -> Session:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return Session(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def compare(sessions: tuple[Session, Session], tile: int, rounds: int) -> dict[str, Any]:
    """Return the milliseconds of both, the ratio round by round, and how far the outputs are apart."""
    image = np.random.default_rng(1).integers(0, 256, (1, tile, tile, 3)).astype(np.float32) / 255
    times: tuple[list[float], list[float]] = ([], [])
    outputs = [None, None]
    for index in range(rounds + WARM_UP):
        for which, session in enumerate(sessions):
            begin = time.perf_counter()
            outputs[which] = session.run(None, {"image": image})[0]
            if index >= WARM_UP:
                times[which].append(1000 * (time.perf_counter() - begin))
    ratios = sorted(stock / lowered for stock, lowered in zip(*times, strict=True))
    return {
        "stock_ms": round(min(times[0]), 2),
        "lowered_ms": round(min(times[1]), 2),
        "speedup": round(statistics.median(ratios), 2),
        "worst_and_best_round": [round(ratios[0], 2), round(ratios[-1], 2)],
        "max_abs": float(np.abs(outputs[0] - outputs[1]).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    stages = []
    for level in range(len(CONVOLUTIONS)):
        tile, filters = options.tile // 2**level, options.width * min(2**level, 8)
        sessions = convert(build_stage(tile, filters), tile, options.threads)
        stages.append({"tile": tile, "filters": filters, **compare(sessions, tile, options.rounds)})
        print(stages[-1])
    network = compare(
        convert(build_network(options.tile, options.width), options.tile, options.threads),
        options.tile,
        options.rounds,
    )
    print(network)
    stock, lowered = (sum(stage[key] for stage in stages) for key in ("stock_ms", "lowered_ms"))
    figures = {
        "tile": options.tile,
        "width": options.width,
        "threads": options.threads,
        "unpooling_speedup": round(stock / lowered, 2),
        "stages": stages,
        "network": network,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
