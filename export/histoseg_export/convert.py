"""Turn a Keras model into an ONNX graph: uint8 RGB NHWC in, probabilities NHWC out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

import histoseg
from histoseg.errors import HistosegError, ModelError
from histoseg.transform import NORMALIZATIONS, ReversedStep, apply_transform
from histoseg_export.describe import INPUT_NAME, OUTPUT_NAME, Description
from histoseg_export.freeze import Frozen, freeze_graph
from histoseg_export.graph import Graph
from histoseg_export.lower import lower_graph
from histoseg_export.naming import LAYER_MARK, find_layer, rename_graph
from histoseg_export.passes import PASSES, spell_out
from histoseg_export.passes.piece import sketch_graph
from histoseg_export.retarget import copy_layer, fix_size
from histoseg_train.kerasfile import summarize_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Floats, Pixels
    from histoseg.card import TransformStep

# onnxruntime 1.20 runs both; later ones add nothing a segmentation network needs
OPSET = 17
IR_VERSION = 8

# ITU-R BT.601 luma, as Pillow and OpenCV convert
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


def convert_model(model: Any, description: Description) -> onnx.ModelProto:
    """Convert a Keras model, with cast, normalisation and activation in the graph.

    Args:
        model: What `load_model` returned.
        description: Normalisation, activation and tile of the model.

    Returns:
        A checked model: `image` uint8 `(batch, height, width, 3)` to `probabilities` float32
        `(batch, height, width, channels)`. It has no card yet.

    Raises:
        ModelError: A layer cannot be converted, or a step left an invalid graph; the message names it.
    """
    with _explaining():
        converted = lower_graph(_trace(model, description), opset=OPSET)
    graph = Graph(converted.graph)
    spell_out(graph)
    graph.drop_unused()
    _refuse_unsupported(graph)
    for simplify in PASSES:
        simplify(graph)
        graph.drop_unused()
        _check(sketch_graph(graph), simplify.__name__)
    rename_graph(graph)
    graph.store()
    _declare(converted, description)
    _check(converted, "naming")
    return converted


def to_reference_input(rgb: Pixels, description: Description, channels: int) -> Floats:
    """Return what the Keras model takes for `(n, height, width, 3)` uint8: normalised, grey if it is."""
    values = apply_transform(rgb, [_step_for(description, channels)])
    return values if channels == 3 else values @ GREY_WEIGHTS[:, None]


def _step_for(description: Description, channels: int) -> TransformStep | ReversedStep:
    """Return the normalisation; grey has no order of channels."""
    step = NORMALIZATIONS[description.normalization]
    return step.step if isinstance(step, ReversedStep) and channels == 1 else step


def _trace(model: Any, description: Description) -> Frozen:
    """Return the graph of a model at its tile's size; the model of that size is gone again."""
    import tensorflow as tf

    width, height = description.tile
    fixed = fix_size(model, description.tile, copy=replace_layer)
    channels = fixed.inputs[0].shape[3]
    step = _step_for(description, channels)

    def predict(image: Any) -> Any:
        values = _normalize(image, step)
        if channels == 1:
            values = tf.nn.conv2d(values, GREY_WEIGHTS.reshape(1, 1, 3, 1), strides=1, padding="VALID")
        values = tf.cast(values, fixed.inputs[0].dtype)
        return tf.identity(_activate(fixed(values, training=False), description), name=OUTPUT_NAME)

    return freeze_graph(predict, tf.TensorSpec((None, height, width, 3), tf.uint8, name=INPUT_NAME))


@contextmanager
def _explaining() -> Iterator[None]:
    try:
        yield
    except HistosegError:
        raise
    except Exception as error:  # tf2onnx raises ValueError, RuntimeError, KeyError and its own
        words = summarize_error(error)
        raise ModelError(f"tf2onnx cannot convert this model ({words})") from error


def _refuse_unsupported(graph: Graph) -> None:
    """Refuse what tf2onnx passed through as it was, naming layers and operations."""
    unknown = [node for node in graph.nodes if not onnx.defs.has(node.op_type, OPSET, node.domain)]
    if unknown:
        words = dict.fromkeys(f"'{find_layer(node, graph)}' ({node.op_type})" for node in unknown)
        raise ModelError(
            f"ONNX has no operation for what these layers do: {', '.join(words)}; "
            "replace them, or their activation, by plain Keras layers"
        )


def _normalize(image: Any, item: TransformStep | ReversedStep) -> Any:
    """Shift, then scale: the scale can be folded into the first convolution, its padding stays 0."""
    import tensorflow as tf

    step = item.step if isinstance(item, ReversedStep) else item
    mean, std = np.asarray(step.mean, np.float64), np.asarray(step.std, np.float64)
    if isinstance(item, ReversedStep):
        image = tf.gather(image, [2, 1, 0], axis=-1)  # while a value is one byte
        mean, std = mean[::-1], std[::-1]
    values = tf.cast(image, tf.float32)
    shift, scale = mean / step.scale, step.scale / std
    if shift.any():
        values = values - _plain(shift)
    return values if (scale == 1).all() else values * _plain(scale)


def _plain(values: NDArray[np.float64]) -> NDArray[np.float32]:
    same = (values == values[0]).all()
    return np.asarray(values[0] if same else values, np.float32)


def _activate(values: Any, description: Description) -> Any:
    import tensorflow as tf

    if description.clip:
        return tf.clip_by_value(values, 0.0, 1.0)
    if description.activation != "logits":
        return values
    return tf.sigmoid(values) if description.channels == 1 else tf.nn.softmax(values, axis=-1)


def replace_layer(layer: Any) -> Any:
    """Copy a layer of Keras 3; one that converts badly becomes one that does the same and converts well."""
    import keras

    nearest = isinstance(layer, keras.layers.UpSampling2D) and layer.interpolation == "nearest"
    if nearest and layer.data_format == "channels_last":
        return _build_nearest(layer)
    inner = layer.layer if isinstance(layer, keras.layers.TimeDistributed) else layer
    if type(inner) is keras.layers.Dense and len(layer.input.shape) == 4:
        return _build_pointwise(inner)
    return copy_layer(layer)


def _build_pointwise(layer: Any) -> Any:
    """Build a `Dense` layer on the channels of a map as a convolution.

    Keras writes it as a product of tensors, whose shapes ONNX works out on every run.
    """
    import keras
    import tensorflow as tf

    class PointwiseDense(keras.layers.Dense):  # type: ignore[misc]
        """`Dense` on `(batch, height, width, channels)`."""

        def call(self, inputs: Any, mask: Any = None) -> Any:
            """Convolve with a kernel of one pixel; images have no mask."""
            values = tf.nn.conv2d(inputs, self.kernel[None, None], 1, "VALID")
            values = tf.nn.bias_add(values, self.bias) if self.use_bias else values
            return values if self.activation is None else self.activation(values)

    return copy_layer(layer, PointwiseDense)


def _build_nearest(layer: Any) -> Any:
    """Build nearest-neighbour upsampling on TensorFlow's own resize.

    Keras writes it as repeats, which become a dozen ONNX nodes with two transposes each.
    """
    import keras
    import tensorflow as tf

    class NearestUpsampling(keras.layers.Layer):  # type: ignore[misc]
        """`UpSampling2D(interpolation='nearest')`, channels last."""

        def call(self, inputs: Any) -> Any:
            """Repeat rows and columns."""
            size = [inputs.shape[1] * layer.size[0], inputs.shape[2] * layer.size[1]]
            return tf.raw_ops.ResizeNearestNeighbor(images=inputs, size=size, half_pixel_centers=False)

        def compute_output_shape(self, shape: Any) -> Any:
            """Return the enlarged shape."""
            return layer.compute_output_shape(shape)

    return NearestUpsampling(name=f"{layer.name}{LAYER_MARK}")


def _declare(model: onnx.ModelProto, description: Description) -> None:
    """State the interface, and leave nothing of the machine or the converter in the file."""
    width, height = description.tile
    tensors = (
        (model.graph.input, INPUT_NAME, onnx.TensorProto.UINT8, 3),
        (model.graph.output, OUTPUT_NAME, onnx.TensorProto.FLOAT, description.channels),
    )
    for field, name, kind, channels in tensors:
        del field[:]
        field.append(helper.make_tensor_value_info(name, kind, ["batch", height, width, channels]))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "histoseg", histoseg.__version__
    model.graph.name, model.graph.doc_string, model.doc_string = "histoseg", "", ""
    del model.metadata_props[:]


def _check(model: onnx.ModelProto, step: str) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        words = summarize_error(error)
        raise ModelError(
            f"the graph is not valid after '{step}' ({words}); please report this model"
        ) from error
