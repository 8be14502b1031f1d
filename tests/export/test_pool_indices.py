"""SegNet's pooling indices: no index is left in the exported graph, and every bit is Keras's.

Weights and pixels are small whole numbers, whose sums are exact in any order: what differs, differs for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from histoseg_export.convert import convert_model
from histoseg_export.describe import Description
from histoseg_export.graph import Graph
from histoseg_export.passes import lower_pool_indices
from histoseg_train.architectures import build_architecture, parse_architecture

WIDTH, HEIGHT = 48, 32
# values between 0 and 255 as they are, and what the network gives taken as probabilities
DESCRIPTION = Description(
    "segnet", ("a", "b"), ("#000000", "#ffffff"), 0.5, "none", (WIDTH, HEIGHT), "softmax", 2
)
INDEX_OPERATORS = {"ScatterND", "ScatterElements", "MaxUnpool", "GatherND", "Div", "Mod", "Range", "Shape"}


@keras.saving.register_keras_serializable("histoseg_tests")
class PoolWithArgmax(keras.layers.Layer):  # type: ignore[misc]
    """Pooling as published SegNets write it."""

    def __init__(self, *, whole_batch: bool = False, size: int = 2, **options: Any) -> None:
        super().__init__(**options)
        self.whole_batch, self.size = whole_batch, size

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "whole_batch": self.whole_batch, "size": self.size}

    def call(self, features: Any) -> Any:
        return tf.nn.max_pool_with_argmax(
            features, self.size, self.size, "SAME", include_batch_in_index=self.whole_batch
        )

    def compute_output_shape(self, shape: Any) -> Any:
        small = (shape[0], shape[1] // self.size, shape[2] // self.size, shape[3])
        return small, small


class Unpool(keras.layers.Layer):  # type: ignore[misc]
    """What published unpooling layers share: a result `size` times as high and wide."""

    def __init__(self, *, size: int = 2, **options: Any) -> None:
        super().__init__(**options)
        self.size = size

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size}

    def compute_output_shape(self, shapes: Any) -> Any:
        count, height, width, channels = shapes[0]
        return count, height * self.size, width * self.size, channels

    def enlarge(self, values: Any) -> tuple[Any, Any, Any, Any]:
        count, height, width, channels = tf.unstack(tf.cast(tf.shape(values), tf.int64))
        return count, height * self.size, width * self.size, channels


@keras.saving.register_keras_serializable("histoseg_tests")
class UnpoolByPlace(Unpool):
    """Take an index apart into image, row, column and channel, as most do."""

    def call(self, inputs: Any) -> Any:
        values, indices = inputs
        count, height, width, channels = self.enlarge(values)
        ones = tf.ones_like(indices)
        image = ones * tf.reshape(tf.range(count), (-1, 1, 1, 1))
        row, column = indices // (width * channels), indices // channels % width
        channel = ones * tf.range(channels)
        places = tf.transpose(tf.reshape(tf.stack([image, row, column, channel]), (4, tf.size(values))))
        shape = tf.stack([count, height, width, channels])
        return tf.scatter_nd(places, tf.reshape(values, [-1]), shape)


@keras.saving.register_keras_serializable("histoseg_tests")
class UnpoolFlat(Unpool):
    """Scatter into a flat batch, then reshape it."""

    def call(self, inputs: Any) -> Any:
        values, indices = inputs
        count, height, width, channels = self.enlarge(values)
        offsets = tf.reshape(tf.range(count), (-1, 1, 1, 1)) * height * width * channels
        places = tf.reshape(indices + offsets, (-1, 1))
        flat = tf.scatter_nd(
            places, tf.reshape(values, [-1]), tf.reshape(count * height * width * channels, (1,))
        )
        return tf.reshape(flat, tf.stack([count, height, width, channels]))


@keras.saving.register_keras_serializable("histoseg_tests")
class UnpoolWholeBatch(Unpool):
    """The same with indices that count through the whole batch."""

    def call(self, inputs: Any) -> Any:
        values, indices = inputs
        shape = tf.stack(self.enlarge(values))
        flat = tf.scatter_nd(
            tf.reshape(indices, (-1, 1)), tf.reshape(values, [-1]), tf.reduce_prod(shape, keepdims=True)
        )
        return tf.reshape(flat, shape)


@keras.saving.register_keras_serializable("histoseg_tests")
class UnpoolTransposed(Unpool):
    """A look-alike: it mistakes rows for columns, so no comparison of windows gives the same."""

    def call(self, inputs: Any) -> Any:
        values, indices = inputs
        shape = tf.stack(self.enlarge(values))
        total = tf.reduce_prod(shape, keepdims=True)
        flat = tf.scatter_nd(tf.reshape(total[0] - 1 - indices, (-1, 1)), tf.reshape(values, [-1]), total)
        return tf.reshape(flat, shape)


def convolve(features: Any, filters: int, name: str) -> Any:
    return keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)(features)


def build_published(
    unpool: type[Unpool], *, whole_batch: bool = False, size: int = 2, levels: int = 2
) -> Any:
    """Build a SegNet without batch normalisation; the lowest maxima go straight back."""
    features = image = keras.Input((HEIGHT, WIDTH, 3))
    indices = []
    for level in range(levels):
        features = convolve(features, 3 + level, f"enc{level}")
        features, places = PoolWithArgmax(whole_batch=whole_batch, size=size, name=f"pool{level}")(features)
        indices.append(places)
    for level in reversed(range(levels)):
        features = unpool(size=size, name=f"unpool{level}")([features, indices[level]])
        features = convolve(features, 3 + level - (level > 0), f"dec{level}")
    return set_whole_weights(keras.Model(image, keras.layers.Conv2D(2, 1, name="head")(features)))


def set_whole_weights(model: Any) -> Any:
    """Make each kernel a few ones, of both signs, and each normalisation do nothing."""
    rng = np.random.default_rng(3)
    for layer in model.layers:
        values = layer.get_weights()
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = values
            layer.set_weights(
                [gamma * 0 + 1, beta * 0, mean * 0, variance * 0 + np.float32(1 - layer.epsilon)]
            )
        elif values:
            kernel = rng.choice([-1, 0, 0, 0, 1], values[0].shape)
            layer.set_weights([kernel, *(np.zeros_like(value) for value in values[1:])])
    return model


def draw_tiles(seed: int, *, count: int = 2, colors: int = 3) -> Any:
    """Draw tiles of few values: most windows hold ties."""
    return np.random.default_rng(seed).integers(0, colors, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def open_graph(model: onnx.ModelProto) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda tiles: session.run(None, {"image": tiles})[0]


def assert_same_bits(model: Any, graph: onnx.ModelProto) -> None:
    run = open_graph(graph)
    for seed, colors in enumerate((1, 2, 3, 256)):
        tiles = draw_tiles(seed, count=1 + seed, colors=colors)
        expected = keras.ops.convert_to_numpy(model(tiles.astype(np.float32), training=False))
        if colors > 1:
            assert expected.std() > 0
        np.testing.assert_array_equal(run(tiles), expected)


def assert_no_indices(graph: onnx.ModelProto) -> None:
    counts = Counter(node.op_type for node in graph.graph.node)
    assert not INDEX_OPERATORS & set(counts)
    assert all(len(node.output) == 1 for node in graph.graph.node), "a pooling still gives indices"
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    wide = [v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TensorProto.INT64]
    assert not wide, "64-bit integers are computed"


PUBLISHED: dict[str, Callable[[], Any]] = {
    "by_place": lambda: build_published(UnpoolByPlace),
    "flat": lambda: build_published(UnpoolFlat),
    "whole_batch": lambda: build_published(UnpoolWholeBatch, whole_batch=True),
    "one_level": lambda: build_published(UnpoolByPlace, levels=1),
    "windows_of_four": lambda: build_published(UnpoolFlat, size=4),
}


@pytest.mark.parametrize("style", PUBLISHED)
def test_published_unpooling_needs_no_indices(style: str) -> None:
    model = PUBLISHED[style]()
    graph = convert_model(model, DESCRIPTION)
    assert_no_indices(graph)
    assert_same_bits(model, graph)


@pytest.mark.parametrize("shape", [(None, None, 3), (HEIGHT, WIDTH, 3)])
def test_our_segnet_needs_no_indices(shape: tuple[int | None, int | None, int]) -> None:
    whole = set_whole_weights(build_architecture(shape, 2, options=parse_architecture("segnet-w3-d2")))
    model = keras.Model(whole.inputs[0], whole.get_layer("head_logits").output)
    graph = convert_model(model, DESCRIPTION)
    assert_no_indices(graph)
    assert_same_bits(model, graph)


def test_a_look_alike_keeps_its_own_arithmetic() -> None:
    model = build_published(UnpoolTransposed, whole_batch=True, levels=1)
    graph = convert_model(model, DESCRIPTION)
    assert "ScatterND" in {node.op_type for node in graph.graph.node}
    run = open_graph(graph)
    tiles = draw_tiles(0)
    expected = keras.ops.convert_to_numpy(model(tiles.astype(np.float32)))
    np.testing.assert_array_equal(run(tiles), expected)


# the pass alone


def build_unpooling(
    maps: Any, *, size: int = 2, step: int | None = None, storage_order: int = 0, watched: bool = False
) -> onnx.ModelProto:
    """Build a pooling and the ONNX operation that undoes it; `watched` indices are used elsewhere, too."""
    nodes = [
        helper.make_node(
            "MaxPool", ["x"], ["pooled", "indices"], name="pool", kernel_shape=[size] * 2,
            strides=[step or size] * 2, storage_order=storage_order,
        ),
        helper.make_node("Neg", ["pooled"], ["values"]),
        helper.make_node(
            "MaxUnpool", ["values", "indices", *(["shape"] if step else [])], ["raised"],
            kernel_shape=[size] * 2, strides=[step or size] * 2,
        ),
        helper.make_node("Mul", ["raised", "two"], ["twice"]),
    ]  # fmt: skip
    if watched:
        nodes.append(helper.make_node("Cast", ["indices"], ["numbers"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceMax", ["numbers"], ["largest"], keepdims=1))
        nodes.append(helper.make_node("Add", ["twice", "largest"], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", ["twice"], ["y"]))
    constants = [numpy_helper.from_array(np.array(2, np.float32), "two")]
    constants.append(numpy_helper.from_array(np.array(maps.shape, np.int64), "shape"))
    shape = ["n", *maps.shape[1:]]
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        constants,
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def lower(model: onnx.ModelProto) -> int:
    graph = Graph(model.graph)
    changes = lower_pool_indices(graph)
    graph.store()
    onnx.checker.check_model(model, full_check=True)
    return changes


def run_alone(model: onnx.ModelProto, maps: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": maps})[0]


@st.composite
def draw_maps(draw: Callable[..., Any]) -> tuple[Any, int]:
    """Draw maps of few values, zeros of both signs among them, and the side of the windows that tile them."""
    size = draw(st.integers(2, 4))
    count, channels, rows, columns = (draw(st.integers(1, 3)) for _ in range(4))
    shape = count, channels, rows * size, columns * size
    return draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([-1.0, -0.0, 0.0, 1.0]))), size


@settings(max_examples=30)
@given(draw_maps())
def test_comparisons_give_the_bits_of_indices(drawn: tuple[Any, int]) -> None:
    maps, size = drawn
    model = build_unpooling(maps, size=size)
    expected = run_alone(model, maps)
    assert lower(model) == 1
    assert "MaxUnpool" not in {node.op_type for node in model.graph.node}
    np.testing.assert_array_equal(run_alone(model, maps), expected)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 3, 6, 9), {"size": 2}),
        ((2, 3, 9, 9), {"size": 3, "step": 2}),
        ((2, 3, 6, 6), {"size": 2, "storage_order": 1}),
    ],
    ids=["cut_off", "overlapping", "column_major"],
)
def test_other_windows_keep_their_indices(shape: tuple[int, ...], options: dict[str, int]) -> None:
    model = build_unpooling(np.zeros(shape, np.float32), **options)  # type: ignore[arg-type]
    before = [node.op_type for node in model.graph.node]
    assert lower(model) == 0
    assert [node.op_type for node in model.graph.node] == before


def test_indices_that_others_use_stay_for_them() -> None:
    maps = np.random.default_rng(0).integers(-1, 2, (2, 3, 4, 6)).astype(np.float32)
    model = build_unpooling(maps, watched=True)
    expected = run_alone(model, maps)
    assert lower(model) == 1
    assert {"Cast", "ReduceMax"} <= {node.op_type for node in model.graph.node}
    np.testing.assert_array_equal(run_alone(model, maps), expected)
