"""Insert QuantizeLinear and DequantizeLinear pairs, which onnxruntime fuses into int8 kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

from histoseg.errors import ModelError
from histoseg_export.graph import Graph, attribute
from histoseg_export.int8.pad_channels import pad_channels

if TYPE_CHECKING:
    from histoseg_export.calibrate import Ranges

# what onnxruntime's CPU provider has int8 kernels for, or moves as bytes
_QUANTIZED = (
    "Add", "AveragePool", "Clip", "Concat", "Conv", "GlobalAveragePool", "LeakyRelu", "MatMul", "MaxPool",
    "Mul", "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Transpose",
)  # fmt: skip


@dataclass(frozen=True)
class Kernels:
    """What onnxruntime runs a model with, once its optimizations are done."""

    convolutions: int
    int8_convolutions: int
    int8_islands: int
    """Places where int8 turns back to float; 1, before the probabilities, when everything is quantized."""


def insert_qdq(
    model: onnx.ModelProto, ranges: Ranges, *, in_float: Collection[str], only: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a model in static QDQ form, per channel.

    Args:
        model: An fp32 model, as `fold_pixels` leaves it.
        ranges: Lowest and highest of each of its values.
        in_float: Names of nodes that stay as they are.
        only: Names of the nodes to quantize; all others when empty.

    Raises:
        ModelError: The quantizer left an invalid graph.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy.graph)
    padded = pad_channels(graph, kept=in_float)
    graph.store()
    ranges = ranges | {new: ranges[old] for new, old in padded.items()}
    pairs = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        onnx.shape_inference.infer_shapes(copy),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, pairs),
        nodes_to_quantize=sorted(only),
        nodes_to_exclude=sorted(in_float),
        op_types_to_quantize=list(_QUANTIZED),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    _shield_float_layers(result)
    return _check(result)


def count_kernels(model: onnx.ModelProto) -> Kernels:
    """Load a model on the CPU as a user would, and count what it became."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns that the result suits this machine, which is what is asked
    with TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in onnx.load(str(path)).graph.node)
    in_float = sum(kinds[kind] for kind in ("Conv", "ConvTranspose", "FusedConv"))
    return Kernels(in_float + kinds["QLinearConv"], kinds["QLinearConv"], kinds["DequantizeLinear"])


def _shield_float_layers(model: onnx.ModelProto) -> None:
    """Keep onnxruntime from quantizing what was left in float.

    Where a convolution with float weights follows a DequantizeLinear with one scale, its optimizer
    `WeightBiasQuantization` makes the weights int8, with one scale for all of them, and nothing says so. It
    leaves those alone that follow one with a scale for each channel; here these are all the same.
    """
    graph = Graph(model.graph)
    for node in list(graph.nodes):
        source = graph.producer(node.input[0]) if node.input else None
        if node.op_type not in ("Conv", "ConvTranspose") or node.input[1] not in graph.constants:
            continue
        if source is None or source.op_type != "DequantizeLinear":
            continue
        channels = graph.constants[node.input[1]].shape[0 if node.op_type == "ConvTranspose" else 1]
        channels *= int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
        names = [
            graph.add_constant(np.repeat(graph.constants[name].reshape(-1), channels), name)
            for name in source.input[1:]
        ]
        value = f"{node.name}/input"
        inputs = [source.input[0], *names]
        shield = helper.make_node("DequantizeLinear", inputs, [value], name=f"{value}/Dequantize", axis=1)
        graph.nodes.insert(graph.nodes.index(node), shield)
        node.input[0] = value
    graph.store()


def _check(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.graph.value_info[:]
    del model.metadata_props[:]
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        words = " ".join(str(error).split())[:160]
        raise ModelError(f"the int8 graph is not valid ({words}); please report this model") from error
    return model
