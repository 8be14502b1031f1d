"""Segmentation networks in the styles people write them: saved, loaded, converted, and compared on noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from histoseg.errors import ModelError
from histoseg_export.convert import convert_model
from histoseg_export.describe import ExportOptions, describe_model
from histoseg_export.load import load_model
from histoseg_export.prove import predict_reference

SIZE = 32


def image(k, channels=3, size=SIZE, **options):
    return k.Input((size, size, channels), **options)


def conv(k, x, filters, activation="relu", size=3, **options):
    return k.layers.Conv2D(filters, size, padding="same", activation=activation, **options)(x)


def finish(k, start, x, classes=2, activation="softmax"):
    return k.Model(start, k.layers.Conv2D(classes, 1, activation=activation)(x))


def unet_transposed(k):
    start = x = image(k)
    skips = []
    for filters in (4, 6):
        x = k.layers.BatchNormalization()(k.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x))
        x = k.layers.Dropout(0.2)(k.layers.Activation("relu")(x))
        skips.append(x)
        x = k.layers.MaxPooling2D()(x)
    for filters, skip in zip((6, 4), skips[::-1], strict=True):
        x = k.layers.Conv2DTranspose(filters, 3, strides=2, padding="same")(x)
        x = conv(k, k.layers.Concatenate()([x, skip]), filters)
    return finish(k, start, x, 1, "sigmoid")


def unet_nearest_any_size(k):
    start = image(k, size=None)
    skip = conv(k, start, 4)
    x = k.layers.SpatialDropout2D(0.1)(conv(k, k.layers.MaxPooling2D()(skip), 6, "elu"))
    return finish(k, start, k.layers.Add()([skip, conv(k, k.layers.UpSampling2D()(x), 4, size=2)]), 3)


def unet_bilinear_any_size(k):
    start = image(k, size=None)
    skip = conv(k, start, 4)
    x = k.layers.UpSampling2D(interpolation="bilinear")(
        conv(k, k.layers.AveragePooling2D(2)(skip), 6, "selu")
    )
    return finish(k, start, k.layers.Concatenate()([skip, x]), 2, None)


def sequential(k):
    first = k.layers.Conv2D(4, 3, padding="same")
    start = [k.Input((SIZE, SIZE, 3)), first]
    if k.__name__ == "tf_keras":
        start = [k.layers.Conv2D(4, 3, padding="same", input_shape=(SIZE, SIZE, 3))]
    L = k.layers  # noqa: N806
    return k.Sequential(
        [*start, L.LeakyReLU(), L.MaxPooling2D(), L.SeparableConv2D(5, 3, padding="same"),
         L.PReLU(shared_axes=[1, 2]), L.DepthwiseConv2D(3, padding="same"), L.BatchNormalization(),
         L.UpSampling2D(), L.Conv2D(4, 1), L.Softmax()]
    )  # fmt: skip


def padded_and_cropped(k):
    start = image(k)
    x = k.layers.ZeroPadding2D(((3, 1), (0, 4)))(
        k.layers.Conv2D(4, 5, activation="relu")(k.layers.ZeroPadding2D(2)(start))
    )
    return finish(k, start, k.layers.Cropping2D(((3, 1), (0, 4)))(conv(k, x, 4)), 1, None)


def softmax_over_rows(k):
    start = image(k)
    x = k.layers.Reshape((SIZE * SIZE, 3))(k.layers.Conv2D(3, 1)(conv(k, start, 4)))
    return k.Model(start, k.layers.Reshape((SIZE, SIZE, 3))(k.layers.Activation("softmax")(x)))


def softmax_after_permute(k):
    start = image(k)
    x = k.layers.Permute((3, 1, 2))(k.layers.Conv2D(3, 1)(conv(k, start, 4)))
    x = k.layers.Permute((2, 1))(k.layers.Reshape((3, SIZE * SIZE))(x))
    return k.Model(start, k.layers.Reshape((SIZE, SIZE, 3))(k.layers.Activation("softmax")(x)))


def pyramid_pooling(k):
    start = image(k)
    x = conv(k, conv(k, start, 4, strides=2), 6, strides=2)
    pooled = k.layers.Reshape((1, 1, 6))(k.layers.GlobalAveragePooling2D()(x))
    pooled = k.layers.UpSampling2D((SIZE // 4, SIZE // 4), interpolation="bilinear")(
        conv(k, pooled, 4, size=1)
    )
    x = k.layers.Concatenate()([*(conv(k, x, 4, dilation_rate=rate) for rate in (1, 2, 3)), pooled])
    x = k.layers.UpSampling2D(4, interpolation="bilinear")(k.layers.Conv2D(2, 1)(x))
    return k.Model(start, k.layers.Softmax()(x))


def squeeze_and_resize(k):
    start = image(k)
    x = conv(k, start, 4)
    gate = k.layers.Conv2D(4, 1, activation="sigmoid")(k.layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = k.layers.Resizing(SIZE, SIZE)(k.layers.MaxPooling2D()(k.layers.Multiply()([x, gate])))
    return finish(k, start, x)


def encoder_as_a_layer(k):
    base = k.applications.MobileNetV2((SIZE, SIZE, 3), alpha=0.35, include_top=False, weights=None)
    names = ("block_1_expand_relu", "block_3_expand_relu")
    encoder = k.Model(base.input, [base.get_layer(name).output for name in names])
    encoder.trainable = False
    start = image(k)
    skip, x = encoder(start)
    x = k.layers.Concatenate()([k.layers.Conv2DTranspose(4, 3, strides=2, padding="same")(x), skip])
    return k.Model(start, k.layers.Conv2DTranspose(2, 3, strides=2, padding="same")(x))


def sequentials_as_layers(k):
    start = image(k)
    down = k.Sequential(
        [k.layers.Conv2D(4, 3, strides=2, padding="same"), k.layers.BatchNormalization(), k.layers.ReLU()]
    )
    up = k.Sequential([k.layers.Conv2DTranspose(4, 3, strides=2, padding="same"), k.layers.Dropout(0.5)])
    return finish(k, start, up(down(start)))


def attention_gate(k):
    start = image(k)
    skip = conv(k, start, 4)
    x = conv(k, k.layers.MaxPooling2D()(skip), 4)
    gate = k.layers.Activation("relu")(k.layers.Add()([x, k.layers.Conv2D(4, 2, strides=2)(skip)]))
    gate = k.layers.UpSampling2D()(k.layers.Conv2D(1, 1, activation="sigmoid")(gate))
    return finish(
        k,
        start,
        k.layers.Concatenate()([k.layers.UpSampling2D()(x), k.layers.Multiply()([skip, gate])]),
        1,
        "sigmoid",
    )


def normalisers(k):
    start = image(k)
    x = k.layers.UnitNormalization()(
        k.layers.LayerNormalization()(k.layers.GroupNormalization(2)(conv(k, start, 4)))
    )
    return finish(k, start, x)


def merges(k):
    start = image(k)
    a, b = conv(k, start, 4), conv(k, start, 4)
    x = k.layers.Average()(
        [k.layers.Maximum()([a, b]), k.layers.Minimum()([a, b]), k.layers.Subtract()([a, b])]
    )
    return finish(k, start, x, 5)


def groups(k):
    start = image(k)
    x = k.layers.Conv2D(4, 3, padding="same", groups=2)(conv(k, start, 4))
    x = k.layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", strides=2)(x)
    return finish(k, start, k.layers.Conv2DTranspose(4, 4, strides=2, padding="same")(x))


def activations(k):
    start = x = image(k)
    for name in ("relu6", "softplus", "softsign", "elu", "selu", "tanh", "swish", "gelu", "hard_sigmoid"):
        x = conv(k, x, 3, name)
    x = k.layers.ELU(alpha=0.5)(k.layers.ReLU(max_value=6, negative_slope=0.1)(x))
    return finish(
        k, start, k.layers.ActivityRegularization(0.1)(k.layers.GaussianNoise(0.1)(x)), 1, "hard_sigmoid"
    )


def shared_layer(k):
    start, layer = image(k), k.layers.Conv2D(3, 3, padding="same", activation="relu")
    return finish(k, start, layer(layer(start)))


def dense_on_pixels(k):
    start = image(k)
    return k.Model(start, k.layers.Dense(3, activation="softmax")(conv(k, start, 4)))


def dense_by_row(k):
    start = image(k)
    return k.Model(
        start, k.layers.TimeDistributed(k.layers.Dense(3, activation="softmax"))(conv(k, start, 4))
    )


def weights_by_place(k):
    start = image(k)
    return finish(k, start, k.layers.PReLU()(conv(k, start, 4, None)))


def unpadded(k):
    start = image(k)
    x = k.layers.Conv2D(4, 3)(k.layers.Conv2D(4, 3, activation="relu")(start))
    return k.Model(start, k.layers.Conv2DTranspose(1, 3)(k.layers.Conv2DTranspose(4, 3)(x)))


def rescaled(k):
    start = image(k)
    return finish(k, start, conv(k, k.layers.Rescaling(1 / 127.5, offset=-1)(start), 4))


def normalised(k):
    start = image(k)
    x = k.layers.Normalization(mean=[120.0, 110.0, 100.0], variance=[2000.0, 2100.0, 2200.0])(start)
    return finish(k, start, conv(k, x, 4))


def adapted(k):
    start, layer = image(k), k.layers.Normalization()
    layer.adapt(np.random.default_rng(2).uniform(0, 255, (4, 8, 8, 3)).astype(np.float32))
    return finish(k, start, conv(k, layer(start), 4))


def averaged(k):
    start = image(k)
    maps = [k.layers.Conv2D(3, 1, activation="softmax")(conv(k, start, 4)) for _ in range(2)]
    return k.Model(start, k.layers.Average()(maps))


def recurrent_skip(k):
    start = image(k)
    rows = [k.layers.Reshape((1, SIZE, SIZE, 3))(conv(k, start, 3)) for _ in range(2)]
    x = k.layers.ConvLSTM2D(3, 3, padding="same", go_backwards=True)(k.layers.Concatenate(axis=1)(rows))
    return finish(k, start, x)


def bytes_in(k):
    start = image(k, dtype="uint8")
    return finish(k, start, conv(k, k.layers.Rescaling(1 / 255.0)(start), 4))


def grey(k):
    start = image(k, 1)
    return finish(k, start, conv(k, start, 4, "tanh"), 1, "sigmoid")


def channels_first(k):
    start = k.Input((3, SIZE, SIZE))
    first = {"data_format": "channels_first"}
    x = k.layers.UpSampling2D(**first)(k.layers.MaxPooling2D(**first)(conv(k, start, 4, **first)))
    return k.Model(start, k.layers.Conv2D(1, 1, activation="sigmoid", **first)(x))


def rectified(k):
    start = image(k)
    return finish(k, start, conv(k, start, 4), 1, "relu")


STYLES = {
    style.__name__: style
    for style in (
        unet_transposed,
        unet_nearest_any_size,
        unet_bilinear_any_size,
        sequential,
        padded_and_cropped,
        softmax_over_rows,
        softmax_after_permute,
        pyramid_pooling,
        squeeze_and_resize,
        encoder_as_a_layer,
        sequentials_as_layers,
        attention_gate,
        normalisers,
        merges,
        groups,
        activations,
        shared_layer,
        dense_on_pixels,
        dense_by_row,
        weights_by_place,
        unpadded,
        rescaled,
        normalised,
        adapted,
        averaged,
        recurrent_skip,
        bytes_in,
        grey,
        channels_first,
        rectified,
    )
}
NAMES = sorted(STYLES)
NORMALIZATIONS = {"adapted": "none", "rescaled": "none", "normalised": "none", "bytes_in": "none"}
ACTIVATIONS = {
    "unet_bilinear_any_size": "logits", "padded_and_cropped": "logits", "encoder_as_a_layer": "logits",
    "unpadded": "logits",
} | dict.fromkeys(
    ("unet_transposed", "attention_gate", "activations", "grey", "channels_first", "rectified"), "sigmoid"
)  # fmt: skip


def randomize(model: Any) -> Any:
    """Give every weight a value that shows when it is lost."""
    rng = np.random.default_rng(0)
    values = []
    for variable, old in zip(model.weights, model.get_weights(), strict=True):
        name = str(getattr(variable, "path", variable.name))
        fan = max(1, int(np.prod(old.shape[:-1])))
        low, high = (
            (0.5, 1.5) if "variance" in name or "gamma" in name else (-1.7 * fan**-0.5, 1.7 * fan**-0.5)
        )
        statistics = "normalization" in name and old.size == 3 and old.max() > 9
        keep = old.dtype.kind != "f" or not old.ndim or statistics
        values.append(old if keep else rng.uniform(low, high, old.shape))
    model.set_weights(values)
    return model


# what tf_keras builds, or is rebuilt, in its own way
OF_TF_KERAS = [
    "activations", "bytes_in", "channels_first", "dense_by_row", "encoder_as_a_layer", "groups", "normalised",
    "rectified", "recurrent_skip", "sequential", "sequentials_as_layers", "softmax_after_permute",
    "unet_bilinear_any_size", "unet_transposed",
]  # fmt: skip


@pytest.mark.parametrize(
    ("generation", "name"),
    [*(("keras", name) for name in NAMES), *(("tf_keras", name) for name in OF_TF_KERAS)],
)
def test_every_style_converts(name, generation, tmp_path, keras_files):
    module = pytest.importorskip(generation)
    model = randomize(STYLES[name](module))
    # each format with half of the styles
    suffix = ".h5" if NAMES.index(name) % 2 else ".keras"
    model.save(tmp_path / f"model{suffix}")
    loaded = load_model(tmp_path / f"model{suffix}")
    assert loaded.reader.lower().startswith(generation)
    described = describe_model(loaded.model, None, ExportOptions(tile=SIZE, spacing_um_px=0.5))
    assert described.normalization == NORMALIZATIONS.get(name, "unit")
    assert described.activation == ACTIVATIONS.get(name, "softmax")
    graph = convert_model(loaded.model, described)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    noise = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    found = session.run(None, {"image": noise})[0]
    found = np.concatenate([1 - found, found], -1) if found.shape[-1] == 1 else found
    expected = predict_original(model, noise, described)
    assert np.abs(found - expected).max() < 2e-5
    assert np.ptp(expected) > 0


def predict_original(model: Any, noise: np.ndarray, described: Any) -> np.ndarray:
    """Run the model as it was before it was saved, whatever its layout."""
    if model.inputs[0].shape[1] != 3:
        return predict_reference(model, noise, described)
    pixels = noise.transpose(0, 3, 1, 2) / np.float32(255)
    maps = model.predict(pixels, verbose=0).transpose(0, 2, 3, 1)
    return np.concatenate([1 - maps, maps], -1)


@pytest.mark.parametrize(
    "name", ["encoder_as_a_layer", "sequentials_as_layers", "unet_transposed", "channels_first"]
)
@pytest.mark.parametrize("generation", ["keras", "tf_keras"])
def test_fixed_networks_are_rebuilt_for_other_tiles(name, generation, tmp_path, keras_files):
    from histoseg_export.retarget import fix_size

    module = pytest.importorskip(generation)
    randomize(STYLES[name](module)).save(tmp_path / "model.h5")
    model = load_model(tmp_path / "model.h5").model
    fixed = fix_size(model, (96, 64))
    assert tuple(fixed.outputs[0].shape[:3]) == (None, 64, 96)
    pixels = np.random.default_rng(0).uniform(0, 1, (1, SIZE, SIZE, 3)).astype(np.float32)
    same = fix_size(model, (SIZE, SIZE))
    np.testing.assert_allclose(same.predict(pixels, verbose=0), model.predict(pixels, verbose=0), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["pyramid_pooling", "softmax_over_rows", "weights_by_place", "squeeze_and_resize"]
)
@pytest.mark.parametrize("generation", ["keras", "tf_keras"])
def test_networks_bound_to_their_size_say_so(name, generation, keras_files):
    from histoseg_export.retarget import fix_size

    module = pytest.importorskip(generation)
    with pytest.raises(ModelError, match=rf"it takes {SIZE}x{SIZE} px \(--tile {SIZE}\)"):
        fix_size(STYLES[name](module), (64, 64))


@pytest.mark.parametrize(
    ("style", "size", "way_out"),
    [
        ("halved", 64, r"build it with a last UpSampling2D\(2\)"),
        ("unpadded_end", 64, r"cuts off borders .* build it with padding='same'"),
        ("enlarged", 64, r"build it without its last up-sampling"),
        ("pooled", 50, r"give another --tile, a multiple of 32"),
    ],
)
def test_outputs_of_another_size_say_how_to_mend_it(style, size, way_out, keras_files):
    import keras

    from histoseg_export.retarget import fix_size

    start = image(keras, size=None)
    ends = {
        "halved": lambda: conv(keras, start, 2, strides=2),
        "unpadded_end": lambda: keras.layers.Conv2D(2, 3)(start),
        "enlarged": lambda: keras.layers.UpSampling2D(2)(start),
        "pooled": lambda: keras.layers.UpSampling2D(4)(keras.layers.MaxPooling2D(4)(start)),
    }
    with pytest.raises(
        ModelError, match=rf"for an input of {size}x{size}, expected the same size; .*{way_out}"
    ):
        fix_size(keras.Model(start, ends[style]()), (size, size))


def test_softmax_over_one_channel_is_refused(keras_files):
    import keras

    start = image(keras)
    model = finish(keras, start, conv(keras, start, 4), 1)
    with pytest.raises(ModelError, match=r"softmax over one channel, which is 1 everywhere"):
        describe_model(model, None, ExportOptions(spacing_um_px=0.5))


def test_a_network_that_keras_cannot_run_is_refused(keras_files):
    import keras

    start = image(keras, size=None)
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(start)
    x = keras.ops.broadcast_to(gate, keras.ops.shape(start))  # of sizes that were unknown
    model = keras.Model(start, keras.layers.Conv2D(2, 1)(x))
    with pytest.raises(ModelError, match=r"does not take tiles .*\(BroadcastTo.call\(\): Attempt to convert"):
        describe_model(model, None, ExportOptions(tile=SIZE, spacing_um_px=0.5))


def test_grey_and_order_of_channels_do_not_mix(keras_files):
    import keras

    model = STYLES["grey"](keras)
    described = describe_model(model, None, ExportOptions(spacing_um_px=0.5, normalization="caffe"))
    assert any("makes grey of RGB" in note for note in described.notes)
    graph = convert_model(model, replace(described, tile=(SIZE, SIZE)))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    noise = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    grey = (noise - np.array([123.68, 116.779, 103.939])) @ np.array([[0.299], [0.587], [0.114]])
    expected = model.predict(grey.astype(np.float32), verbose=0)
    assert np.abs(session.run(None, {"image": noise})[0] - expected).max() < 1e-4
