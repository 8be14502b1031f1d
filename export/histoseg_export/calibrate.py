"""Ranges of a network's values on real tiles: what its int8 steps are chosen by.

The extremes over all tiles (min-max) are taken. Percentiles, entropy, least squares and means of the tiles'
extremes were measured on a trained U-Net: on held-out images they differed less than two draws of tiles do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnxruntime.quantization import MinMaxCalibrater

from histoseg_export.graph import Graph
from histoseg_export.regions import MOVES

if TYPE_CHECKING:
    from histoseg.arrays import Pixels

    Ranges = dict[str, tuple[float, float]]

SATURATED = 8.0
"""A logit at which a sigmoid is as good as 0 or 1 (0.0003): steps of int8 beyond it tell nothing."""


def measure_ranges(model: onnx.ModelProto, tiles: Pixels) -> Ranges:
    """Run a model over tiles and return the range of every float value in it.

    Args:
        model: Uint8 NHWC in, with the shapes of its values inferred.
        tiles: `(n, height, width, 3)` uint8.

    Returns:
        Lowest and highest of each value. The image's are 0 and 255 whatever the tiles hold, so that int8
        keeps it as it is; those of the logits before a last sigmoid end where it saturates.
    """
    name = model.graph.input[0].name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, str(path))
        calibrater = MinMaxCalibrater(path, augmented_model_path=str(path.with_name("augmented.onnx")))
        calibrater.augment_graph()
        calibrater.create_inference_session()
        calibrater.collect_data(_Feed({name: tile[None]} for tile in tiles))
        found = calibrater.compute_data()
    ranges = {key: (float(data.lowest.min()), float(data.highest.max())) for key, data in found.items()}
    graph = Graph(model.graph)
    ranges |= dict.fromkeys(_find_images(graph) & set(ranges), (0.0, 255.0))
    for value in _find_last_logits(graph):
        low, high = ranges[value]
        ranges[value] = max(low, -SATURATED), min(high, SATURATED)
    return ranges


class _Feed:
    """Hands tiles to onnxruntime's calibrater, one at a time."""

    def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        """Return the next feed; `None` after the last."""
        return next(self._feeds, None)


def _find_images(graph: Graph) -> set[str]:
    """Return the values that hold the image's own pixels, as floats."""
    images = {graph.input}
    floats: set[str] = set()
    for node in graph.nodes:
        if node.op_type in ("Cast", "Transpose") and node.input[0] in images | floats:
            is_float = node.op_type == "Cast" or node.input[0] in floats
            (floats if is_float else images).add(node.output[0])
    return floats


def _find_last_logits(graph: Graph) -> list[str]:
    """Return the values from the last convolution to a sigmoid at the graph's end, if nothing mixes them."""
    node = graph.producer(graph.output)
    while node is not None and node.op_type in MOVES:
        node = graph.producer(node.input[0])
    if node is None or node.op_type != "Sigmoid":
        return []
    values = []
    source = graph.producer(node.input[0])
    while source is not None and source.op_type in (*MOVES, "Conv"):
        values.append(source.output[0])
        if source.op_type == "Conv":
            return values
        source = graph.producer(source.input[0])
    return []
