"""Write a U-Net with random weights as ONNX, for benchmarks that need a large model and no accuracy.

    python benchmarks/unet.py unet32.onnx [--width 32] [--depth 4] [--tile 512]

Ronneberger, Fischer and Brox 2015 with padded convolutions: width 32 and depth 4 has 7.8 million parameters.
It needs `onnx`; the engine's benchmark calls it when no model is named.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from histoseg.card import METADATA_KEY, InputSpec, ModelCard, OutputSpec, Tiling, card_to_text


class Graph:
    """Nodes and weights of a network under construction."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, values: np.ndarray) -> str:
        name = f"weights{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def random(self, *shape: int, fan_in: int) -> str:
        return self.constant(self.rng.standard_normal(shape) * np.sqrt(2 / fan_in))

    def convolve(self, source: str, inputs: int, filters: int, size: int = 3) -> str:
        weights = self.random(filters, inputs, size, size, fan_in=inputs * size * size)
        pads = [size // 2] * 4
        return self.add("Conv", [source, weights, self.constant(np.zeros(filters))], pads=pads)

    def block(self, source: str, inputs: int, filters: int) -> str:
        for count in (inputs, filters):
            source = self.add("Relu", [self.convolve(source, count, filters)])
        return source

    def upsample(self, source: str, filters: int) -> str:
        weights = self.random(2 * filters, filters, 2, 2, fan_in=2 * filters)
        return self.add("ConvTranspose", [source, weights], kernel_shape=[2, 2], strides=[2, 2])


def build_nodes(graph: Graph, width: int, depth: int) -> None:
    source = graph.add("Cast", ["image"], to=TensorProto.FLOAT)
    source = graph.add("Transpose", [source], perm=[0, 3, 1, 2])
    source = graph.add("Mul", [source, graph.constant(np.array(1 / 255))])
    filters, skips = 3, []
    for level in range(depth):
        skips.append(source := graph.block(source, filters, filters := width * 2**level))
        source = graph.add("MaxPool", [source], kernel_shape=[2, 2], strides=[2, 2])
    source = graph.block(source, filters, width * 2**depth)
    for level in reversed(range(depth)):
        filters = width * 2**level
        joined = graph.add("Concat", [skips[level], graph.upsample(source, filters)], axis=1)
        source = graph.block(joined, 2 * filters, filters)
    source = graph.add("Softmax", [graph.convolve(source, width, 2, size=1)], axis=1)
    graph.nodes.append(helper.make_node("Transpose", [source], ["probabilities"], perm=[0, 2, 3, 1]))


def build_card(width: int, depth: int, tile: int) -> ModelCard:
    return ModelCard(
        architecture=f"unet-w{width}-d{depth}",
        class_names=("background", "object"),
        class_colors=("#ffffff", "#1b7f3b"),
        spacing_um_px=0.5,
        patch_size_pixels=(tile, tile),
        input=InputSpec("image", "NHWC", "uint8", "RGB", (None, tile, tile, 3)),
        output=OutputSpec("probabilities", "NHWC", "softmax", 2),
        tiling=Tiling(2**depth, halo_px=32, overlap_px=tile // 4),
        precision="fp32",
    )


def write_unet(path: Path, *, width: int = 32, depth: int = 4, tile: int = 512) -> int:
    """Write the model and return its number of parameters."""
    graph = Graph()
    build_nodes(graph, width, depth)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", tile, tile, 3])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", tile, tile, 2])
    body = helper.make_graph(graph.nodes, "unet", [image], [output], graph.weights)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    helper.set_model_props(model, {METADATA_KEY: card_to_text(build_card(width, depth, tile))})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return sum(int(np.prod(weights.dims)) for weights in graph.weights)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--tile", type=int, default=512)
    options = parser.parse_args()
    count = write_unet(options.model, width=options.width, depth=options.depth, tile=options.tile)
    print(json.dumps({"model": options.model.name, "parameters": count, "tile": options.tile}))


if __name__ == "__main__":
    main()
