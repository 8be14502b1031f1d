"""Turn an fp32 ONNX model into an fp16 one, for CUDA and TensorRT.

Weights and convolutions become fp16; input and output keep their types. What overflows or loses in fp16
stays in fp32: means over large areas, whose sums pass 65 504; the normalisation of the image; and all after
the last convolution (softmax or sigmoid). onnxruntime's own converter is used; that of onnxconverter-common,
which it grew out of, is no longer kept up (microsoft/Olive pull request 1132).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from histoseg.errors import ModelError
from histoseg_export.graph import Graph
from histoseg_export.regions import find_float_nodes

if TYPE_CHECKING:
    from histoseg.card import ModelCard

PROVIDERS = ("cuda", "tensorrt")
MAX_HALF = float(np.finfo(np.float16).max)
# sums over large areas, and exponentials
_WIDE = (
    "AveragePool", "Exp", "GlobalAveragePool", "InstanceNormalization", "LayerNormalization", "LogSoftmax",
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "Softmax",
)  # fmt: skip


def to_half(model: onnx.ModelProto, card: ModelCard) -> tuple[onnx.ModelProto, ModelCard]:
    """Convert a model to fp16.

    Args:
        model: An fp32 model as `convert_model` returns it.
        card: Its card.

    Returns:
        The fp16 model without a card, and its card. It runs on the CPU, too, with casts around its kernels.

    Raises:
        ModelError: A weight is not finite, or too large for fp16; the message names it. Or the graph that
            results is not valid.
    """
    _refuse_large(model)
    kept = find_float_nodes(Graph(model.graph))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    half = convert_float_to_float16(
        copy,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_WIDE],
        node_block_list=sorted(kept),
    )
    sorter = ONNXModel(half)
    sorter.topological_sort()
    del half.graph.value_info[:]
    del half.metadata_props[:]
    try:
        onnx.checker.check_model(half, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        words = " ".join(str(error).split())[:160]
        raise ModelError(f"the fp16 graph is not valid ({words}); please report this model") from error
    return half, replace(card, precision="fp16", providers=PROVIDERS, parity={})


def _refuse_large(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size and not np.isfinite(values).all():
            raise ModelError(
                f"'{tensor.name}' holds values that are not finite, expected finite weights; "
                "train the model again, or find out what became infinite in it"
            )
        largest = float(np.abs(values).max(initial=0))
        if largest > MAX_HALF:
            raise ModelError(
                f"'{tensor.name}' holds {largest:.3g}, expected at most {MAX_HALF:g}, the largest number of "
                "fp16; use fp32"
            )
