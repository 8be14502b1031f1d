"""Turn a Keras model into an ONNX graph: uint8 RGB NHWC in, probabilities NHWC out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

import histoseg
from histoseg.errors import ModelError
from histoseg.transform import NORMALIZATIONS, apply_transform
from histoseg_export.describe import INPUT_NAME, OUTPUT_NAME, Description
from histoseg_export.graph import Graph
from histoseg_export.naming import LAYER_MARK, find_layer, rename_graph
from histoseg_export.passes import PASSES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Floats, Pixels
    from histoseg.card import TransformStep

# onnxruntime 1.20 runs both; later ones add nothing a segmentation network needs
OPSET = 17
IR_VERSION = 8

# ITU-R BT.601 luma, as Pillow and OpenCV convert
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


def fix_size(model: Any, tile: tuple[int, int]) -> Any:
    """Rebuild a model for one tile size, so that no shape arithmetic stays in its graph.

    Args:
        model: A `keras.Model` of Keras layers, of any or another input size.
        tile: Width and height.

    Returns:
        A `keras.Model` with the same weights and input `(batch, height, width, channels)`.

    Raises:
        ModelError: The network does not allow this size, or its output is of another size than its input.
    """
    import keras

    width, height = tile
    channels = model.inputs[0].shape[3]
    image = keras.Input((height, width, channels), name=INPUT_NAME)
    try:
        fixed = keras.models.clone_model(
            model, input_tensors=image, clone_function=_clone_layer, recursive=_has_submodels(model)
        )
        fixed.set_weights(model.get_weights())
    except Exception as error:  # layers raise what they like
        words = " ".join(str(error).split())[:160]
        raise ModelError(
            f"the network does not take tiles of {width}x{height} px ({words}); "
            "give another --tile, a multiple of 32"
        ) from error
    found = tuple(fixed.outputs[0].shape[1:3])
    if found != (height, width):
        raise ModelError(
            f"the output is {found[1]}x{found[0]} px for an input of {width}x{height}, expected the same size"
        )
    return fixed


def convert_model(fixed: Any, description: Description) -> onnx.ModelProto:
    """Convert a fixed-size Keras model, with cast, normalisation and activation in the graph.

    Args:
        fixed: What `fix_size` returned.
        description: Normalisation, activation and tile of the model.

    Returns:
        A checked model: `image` uint8 `(batch, height, width, 3)` to `probabilities` float32
        `(batch, height, width, channels)`. It has no card yet.

    Raises:
        ModelError: A layer cannot be converted, or a step left an invalid graph; the message names it.
    """
    model = _trace(fixed, description)
    _refuse_unsupported(model)
    graph = Graph(model.graph)
    for simplify in PASSES:
        simplify(graph)
        graph.store()
        _check(model, simplify.__name__)
    rename_graph(graph)
    graph.store()
    _declare(model, description)
    _check(model, "naming")
    return model


def to_reference_input(rgb: Pixels, description: Description, channels: int) -> Floats:
    """Return what the Keras model takes for `(n, height, width, 3)` uint8: normalised, grey if it is."""
    values = apply_transform(rgb, [NORMALIZATIONS[description.normalization]])
    return values if channels == 3 else values @ GREY_WEIGHTS[:, None]


def _trace(fixed: Any, description: Description) -> onnx.ModelProto:
    import tensorflow as tf
    import tf2onnx

    width, height = description.tile
    signature = [tf.TensorSpec((None, height, width, 3), tf.uint8, name=INPUT_NAME)]
    step = NORMALIZATIONS[description.normalization]

    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def predict(image: Any) -> Any:
        values = _normalize(tf.cast(image, tf.float32), step)
        if fixed.inputs[0].shape[3] == 1:
            values = tf.nn.conv2d(values, GREY_WEIGHTS.reshape(1, 1, 3, 1), strides=1, padding="VALID")
        return tf.identity(_activate(fixed(values, training=False), description), name=OUTPUT_NAME)

    try:
        model, _ = tf2onnx.convert.from_function(predict, input_signature=signature, opset=OPSET)
    except Exception as error:  # tf2onnx raises ValueError, RuntimeError, KeyError and its own
        words = " ".join(str(error).split())[:160]
        raise ModelError(f"tf2onnx cannot convert this model ({words})") from error
    assert isinstance(model, onnx.ModelProto)
    return model


def _refuse_unsupported(model: onnx.ModelProto) -> None:
    """Refuse what tf2onnx passed through as it was, naming layers and operations."""
    graph = Graph(model.graph)
    unknown = [node for node in graph.nodes if not onnx.defs.has(node.op_type, OPSET, node.domain)]
    if unknown:
        words = dict.fromkeys(f"'{find_layer(node, graph)}' ({node.op_type})" for node in unknown)
        raise ModelError(
            f"ONNX has no operation for what these layers do: {', '.join(words)}; "
            "replace them, or their activation, by plain Keras layers"
        )


def _normalize(values: Any, step: TransformStep) -> Any:
    """Shift, then scale: the scale can be folded into the first convolution, its padding stays 0."""
    mean, std = np.asarray(step.mean, np.float64), np.asarray(step.std, np.float64)
    shift, scale = mean / step.scale, step.scale / std
    if shift.any():
        values = values - _plain(shift)
    return values if (scale == 1).all() else values * _plain(scale)


def _plain(values: NDArray[np.float64]) -> NDArray[np.float32]:
    same = (values == values[0]).all()
    return np.asarray(values[0] if same else values, np.float32)


def _activate(values: Any, description: Description) -> Any:
    import tensorflow as tf

    if description.activation != "logits":
        return values
    return tf.sigmoid(values) if description.channels == 1 else tf.nn.softmax(values, axis=-1)


def _clone_layer(layer: Any) -> Any:
    """Copy and mark a layer; nearest-neighbour upsampling becomes one that converts to a single `Resize`."""
    import keras

    if isinstance(layer, keras.layers.UpSampling2D) and layer.interpolation == "nearest":
        return _build_nearest(layer)
    config = layer.get_config()
    return layer.__class__.from_config({**config, "name": f"{layer.name}{LAYER_MARK}"})


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


def _has_submodels(model: Any) -> bool:
    return any(hasattr(layer, "layers") for layer in model.layers)


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
        words = " ".join(str(error).split())[:160]
        raise ModelError(
            f"the graph is not valid after '{step}' ({words}); please report this model"
        ) from error
