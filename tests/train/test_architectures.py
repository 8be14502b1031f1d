"""Architectures and encoders: their names, outputs, strides, pooling indices, and weights."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import histoseg_train.architectures
from histoseg.errors import ModelError, OptionError
from histoseg_train.architectures import ARCHITECTURES, build_architecture, parse_architecture
from histoseg_train.architectures.atrous import name_layers, rebuild_encoder
from histoseg_train.architectures.encoders import ENCODERS, build_features
from histoseg_train.architectures.pooling import MaskedMaxPooling2D

SMALL = {
    "deeplabv3": "deeplabv3-plain-o8-w16",
    "deeplabv3plus": "deeplabv3plus-plain-o16-w16",
    "segnet": "segnet-w2-d2",
    "unet": "unet-w2-d2",
    "unetplusplus": "unetplusplus-w2-d2",
}
# the others go through tests/export/test_every_architecture.py
ENCODED = [f"unet-{encoder}-w2-d3" for encoder in ENCODERS if encoder != "mobilenet_v2"]
CLASSIFIERS = {name: getattr(keras.applications, spec.function) for name, spec in ENCODERS.items()}
# ties, and zeros of both signs
FEW_VALUES = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0])


def build(name: str, *, shape: tuple[int | None, int | None, int] = (None, None, 3), classes: int = 3) -> Any:
    return build_architecture(shape, classes, options=parse_architecture(name))


def run(model: Any, pixels: Any) -> Any:
    return keras.ops.convert_to_numpy(model(pixels, training=False))


def draw_pixels(height: int, width: int, *, count: int = 2) -> Any:
    return np.random.default_rng(0).normal(size=(count, height, width, 3)).astype(np.float32)


@cache
def build_classifier(encoder: str) -> Any:
    """Return a classifier whose statistics show when they are lost."""
    build_application = CLASSIFIERS[encoder]
    model = build_application(include_top=False, weights=None, input_shape=(None, None, 3))
    return set_statistics(model, variance=(0.5, 1.5))


def set_statistics(model: Any, *, variance: tuple[float, float]) -> Any:
    """Draw what batch normalisation learns; a small variance keeps signals from fading in a deep network."""
    rng = np.random.default_rng(0)
    ranges = {
        "gamma": (0.5, 1.5),
        "beta": (-0.2, 0.4),
        "moving_mean": (-0.2, 0.2),
        "moving_variance": variance,
    }
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            values = [rng.uniform(*ranges[value.name], value.shape) for value in layer.weights]
            layer.set_weights(values)
    return model


def compute_features(model: Any, names: list[str], pixels: Any) -> list[Any]:
    outputs = {name: model.get_layer(name).output for name in names}
    found = keras.Model(model.inputs[0], outputs)(pixels)
    return [keras.ops.convert_to_numpy(found[name]) for name in names]


def test_every_architecture_is_built_here() -> None:
    assert set(SMALL) == set(ARCHITECTURES)


@pytest.fixture
def built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Keras give the classifiers that other tests have built: seconds each."""
    for name, encoder in ENCODERS.items():
        monkeypatch.setattr(
            keras.applications, encoder.function, lambda name=name, **_: build_classifier(name)
        )


@pytest.mark.usefixtures("built_once")
@pytest.mark.parametrize("name", ENCODED)
def test_probabilities_at_the_size_of_any_input(name: str) -> None:
    model = build(name)
    step = parse_architecture(name).stride_multiple
    for pixels in (draw_pixels(2 * step, 3 * step), draw_pixels(4 * step, step, count=1)):
        probabilities = run(model, pixels)
        assert probabilities.shape == (*pixels.shape[:3], 3)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
        assert probabilities.min() >= 0


@pytest.mark.parametrize("name", SMALL.values())
def test_a_fixed_size_computes_what_any_size_does(name: str) -> None:
    step = parse_architecture(name).stride_multiple
    pixels = draw_pixels(2 * step, 3 * step)
    anywhere, fixed = build(name), build(name, shape=(2 * step, 3 * step, 3))
    set_statistics(anywhere, variance=(0.05, 0.2))
    fixed.set_weights(anywhere.get_weights())
    assert fixed.output_shape == (None, *pixels.shape[1:3], 3)
    expected = run(anywhere, pixels)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(fixed.predict(pixels, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["segnet-w2-d2", "unetplusplus-w2-d2", "unet-w2-d2"])
def test_traced_networks_without_a_pyramid_take_any_size(name: str) -> None:
    """Interpolation needs a size when it is traced; nothing else does."""
    model = set_statistics(build(name), variance=(0.05, 0.2))
    spec = tf.TensorSpec((None, None, None, 3))
    traced = tf.function(lambda pixels: model(pixels, training=False), input_signature=[spec])
    for pixels in (draw_pixels(8, 12), draw_pixels(16, 4)):
        expected = run(model, pixels)
        assert expected.std() > 1e-2
        np.testing.assert_allclose(traced(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["segnet-w2-d2", "unetplusplus-w2-d2"])
def test_the_network_commutes_with_shifts_by_its_stride(name: str) -> None:
    """Tiling rests on this: away from the border, a shifted image gives shifted probabilities."""
    model, step = build(name), parse_architecture(name).stride_multiple
    set_statistics(model, variance=(0.05, 0.2))
    pixels = draw_pixels(20 * step, 20 * step, count=1)
    whole, shifted = run(model, pixels), run(model, pixels[:, step:, step:])
    middle, moved = slice(9 * step, 11 * step), slice(8 * step, 10 * step)
    np.testing.assert_allclose(shifted[:, moved, moved], whole[:, middle, middle], atol=1e-5)


@pytest.mark.parametrize("name", [name.replace("w2", "w4") for name in SMALL.values()])
def test_one_step_of_training_reaches_every_weight(name: str) -> None:
    model, step = build(name), parse_architecture(name).stride_multiple
    pixels = draw_pixels(4 * step, 4 * step)
    labels = np.random.default_rng(1).integers(0, 3, pixels.shape[:3])
    before = [keras.ops.convert_to_numpy(value) for value in model.trainable_variables]
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    assert np.isfinite(model.train_on_batch(pixels, labels))
    stuck = [
        value.path
        for old, value in zip(before, model.trainable_variables, strict=True)
        if np.array_equal(old, keras.ops.convert_to_numpy(value))
    ]
    assert not stuck


# names


ENCODER_NAMES = st.sampled_from(["plain", *ENCODERS])
SIZES: dict[str, st.SearchStrategy[Any]] = {"width": st.integers(1, 80), "depth": st.integers(1, 5)}
STEMS = {"skip_width": st.integers(0, 16), "max_width": st.integers(80, 999)}
PYRAMIDS = st.fixed_dictionaries(
    {},
    optional={
        "width": st.integers(1, 512),
        "output_stride": st.sampled_from([8, 16]),
        "encoder": ENCODER_NAMES,
    },
)
OPTIONS = {
    "deeplabv3": PYRAMIDS,
    "deeplabv3plus": PYRAMIDS,
    "segnet": st.fixed_dictionaries({}, optional=SIZES),
    "unet": st.fixed_dictionaries({}, optional=SIZES | {"encoder": ENCODER_NAMES})
    | st.fixed_dictionaries({"stem_stride": st.just(2)}, optional=SIZES | STEMS),
    "unetplusplus": st.fixed_dictionaries({}, optional=SIZES),
}


@given(data=st.data())
@pytest.mark.parametrize("base", sorted(ARCHITECTURES))
def test_a_name_tells_every_option_in_any_order(base: str, data: st.DataObject) -> None:
    options = ARCHITECTURES[base].options(**data.draw(OPTIONS[base]))
    parts = options.name.split("-")
    assert parts[0] == base
    assert parse_architecture("-".join([base, *data.draw(st.permutations(parts[1:]))])) == options


@pytest.mark.parametrize("base", sorted(ARCHITECTURES))
def test_an_architecture_alone_takes_its_usual_options(base: str) -> None:
    assert parse_architecture(base) == ARCHITECTURES[base].options()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "expected one of deeplabv3,"),
        ("UNET-w16", "expected one of deeplabv3,"),
        ("unet-", "'' is no option, expected"),
        ("unet-x3", r"'x3' is no option, expected .*w16 \(width\)"),
        ("unet-w-d2", "'w' is no option"),
        ("unet-w-2", "'w' is no option"),
        ("unet-w\u0663", "is no option"),
        ("unet-w" + "9" * 5000, "is no option"),
        ("unet-w16-w32", "gives width twice, expected it once"),
        ("unet-plain-resnet50", "gives encoder twice"),
        ("unet-vgg16", "'vgg16' is no option, expected plain or resnet50"),
        ("unet-w0", "width is 0"),
        ("unet-d40", "depth 40, expected .* 1 to 10"),
        ("unetplusplus-d11", "depth 11, expected .* 1 to 10"),
        ("unet-w1600", "widest level has 25600 filters, expected at most 8192"),
        ("unet-resnet50-d6", "expected at most 5, and 1, with the encoder resnet50"),
        ("segnet-d6", "depth 6, expected .* 1 to 5"),
        ("segnet-resnet50", "'resnet50' is no option"),
        ("deeplabv3-o32", "output_stride is 32, expected 8 or 16"),
        ("deeplabv3plus-w0", "width is 0, expected 1 to 8192"),
    ],
    ids=lambda value: value[:24],
)
def test_wrong_names_are_refused_in_one_line(name: str, words: str) -> None:
    with pytest.raises(OptionError, match=words) as caught:
        parse_architecture(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--arch is '")


def test_a_width_that_a_cap_keeps_low_is_allowed() -> None:
    assert parse_architecture("unet-w64-d8-m512").stride_multiple == 256


@pytest.mark.parametrize("name", ["unet-w2-d2", "unetplusplus-w2-d2", SMALL["deeplabv3"]])
def test_weights_for_a_network_without_an_encoder_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match="no pretrained encoder; leave it out"):
        build_architecture((64, 64, 3), 2, options=parse_architecture(name), weights="imagenet")


# pooling


def draw_maps(kind: Any) -> st.SearchStrategy[Any]:
    sides = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
    shapes = sides.map(lambda n: (n[0], 2 * n[1], 2 * n[2], n[3]))
    return shapes.flatmap(lambda shape: hnp.arrays(kind, shape, elements=FEW_VALUES))


def unpool(values: Any, indices: Any, shape: tuple[int, ...]) -> Any:
    """Put values where flat indices of the whole batch say."""
    found = np.zeros(int(np.prod(shape)), values.dtype)
    found[np.asarray(indices).ravel()] = values.ravel()
    return found.reshape(shape)


@given(draw_maps(np.float32))
def test_unpooling_puts_values_where_the_first_maxima_were(maps: Any) -> None:
    expected, indices = tf.nn.max_pool_with_argmax(maps, 2, 2, "VALID", include_batch_in_index=True)
    pooled, mask = MaskedMaxPooling2D()(maps)
    np.testing.assert_array_equal(pooled, expected)
    values = np.arange(1, expected.shape.num_elements() + 1, dtype=np.float32).reshape(expected.shape)
    placed = values.repeat(2, axis=1).repeat(2, axis=2) * np.asarray(mask)
    np.testing.assert_array_equal(placed, unpool(values, indices, maps.shape))


@given(draw_maps(np.float16))
def test_half_precision_marks_the_same_places(maps: Any) -> None:
    half = MaskedMaxPooling2D(dtype="float16")(maps)
    full = MaskedMaxPooling2D()(maps.astype(np.float32))
    for found, expected in zip(half, full, strict=True):
        assert found.dtype == "float16"
        np.testing.assert_array_equal(found, expected)


def test_pooling_traced_with_unknown_sizes_marks_the_same_places() -> None:
    layer = MaskedMaxPooling2D()
    traced = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 2))])
    maps = np.random.default_rng(0).integers(-1, 2, (2, 6, 8, 2)).astype(np.float32)
    for found, expected in zip(traced(maps), layer(maps), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_segnet_puts_features_at_the_maxima_of_its_encoder() -> None:
    model = build("segnet-w2-d1", shape=(8, 12, 3))
    names = ["enc1_2_relu", "enc1_pool", "dec1_place"]
    outputs = keras.Model(model.inputs[0], [model.get_layer(name).output for name in names])
    features, (pooled, _), placed = outputs(draw_pixels(8, 12))
    _, indices = tf.nn.max_pool_with_argmax(features, 2, 2, "VALID", include_batch_in_index=True)
    assert np.count_nonzero(placed) > 20
    np.testing.assert_array_equal(placed, unpool(np.asarray(pooled), indices, features.shape))


# strides


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("base", ["deeplabv3", "deeplabv3plus"])
@pytest.mark.parametrize("encoder", ["plain", "mobilenet_v2"])
def test_the_pyramid_sees_the_output_stride(base: str, encoder: str, stride: int) -> None:
    model = build(f"{base}-{encoder}-o{stride}-w16", shape=(64, 96, 3))
    kind = "conv" if base == "deeplabv3" else "depthwise_conv"
    spread = [model.get_layer(f"aspp{index}_{kind}") for index in (2, 3, 4)]
    for layer in (model.get_layer("aspp1_conv"), *spread):
        assert layer.input.shape[1:3] == (64 // stride, 96 // stride)
    rates = [layer.dilation_rate[0] for layer in spread]
    assert rates == [rate * 16 // stride for rate in (6, 12, 18)]


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("encoder", ["mobilenet_v2", "resnet50", "xception"])
def test_no_feature_is_coarser_than_the_output_stride(encoder: str, stride: int) -> None:
    features = rebuild(encoder, stride)
    strides = [min(2 ** (level + 1), stride) for level in range(5)]
    found = [features.get_layer(name).output.shape[1:3] for name in ENCODERS[encoder].features]
    assert found == [(64 // step, 96 // step) for step in strides]


def rebuild(encoder: str, stride: int) -> Any:
    image = keras.Input((64, 96, 3))
    return rebuild_encoder(build_classifier(encoder), image, output_stride=stride, keep_weights=True)


# weights


@pytest.mark.parametrize("encoder", ["inception_resnet_v2", "mobilenet_v2", "xception"])
def test_an_encoder_keeps_every_weight(encoder: str) -> None:
    classifier, features = build_classifier(encoder), rebuild(encoder, 16)
    names = name_layers(classifier)
    assert features.count_params() == classifier.count_params()
    for layer in classifier.layers:
        kept = features.get_layer(names[layer.name]).get_weights() if layer.weights else []
        for old, new in zip(layer.get_weights(), kept, strict=True):
            np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "resnet50"])
def test_features_are_the_classifiers_where_no_stride_is_touched(encoder: str) -> None:
    classifier, names = build_classifier(encoder), list(ENCODERS[encoder].features)
    pixels = draw_pixels(64, 96, count=1)
    expected = compute_features(classifier, names, pixels)
    for found, wanted in zip(compute_features(rebuild(encoder, 32), names, pixels), expected, strict=True):
        assert wanted.std() > 0
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("encoder", "stride", "first"), [("resnet50", 16, 0), ("resnet50", 8, 0), ("mobilenet_v2", 16, 1)]
)
def test_finer_features_hold_the_classifiers_own(encoder: str, stride: int, first: int) -> None:
    """A spread kernel meets the pixels that it met at the coarser stride, up to the border."""
    names, pixels = [ENCODERS[encoder].features[-1]], draw_pixels(64, 96, count=1)
    (coarse,) = compute_features(build_classifier(encoder), names, pixels)
    (fine,) = compute_features(rebuild(encoder, stride), names, pixels)
    step = 32 // stride
    np.testing.assert_allclose(fine[:, first::step, first::step], coarse, atol=1e-5 * np.abs(coarse).max())
    assert np.abs(fine[:, 1 - first :: step, first::step] - coarse).max() > 1e-4 * np.abs(coarse).max()


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Weights as Keras publishes them, and other files."""
    folder = tmp_path_factory.mktemp("weights")
    files = {
        name: folder / name for name in ("mobilenet.h5", "mobilenet.weights.h5", "text.h5", "vgg.weights.h5")
    }
    build_classifier("mobilenet_v2").save(files["mobilenet.h5"])
    build_classifier("mobilenet_v2").save_weights(files["mobilenet.weights.h5"])
    files["text.h5"].write_text("no weights")
    build_vgg().save_weights(files["vgg.weights.h5"])
    yield files
    build_vgg.cache_clear()


@cache
def build_vgg() -> Any:
    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(None, None, 3))
    for layer in model.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, np.random.default_rng(0).normal(0, 0.1, bias.shape)])
    return model


@pytest.mark.parametrize("name", ["mobilenet.h5", "mobilenet.weights.h5"])
def test_weights_come_from_a_file(name: str, weight_files: dict[str, Path]) -> None:
    image = keras.Input((64, 96, 3))
    features = build_features("mobilenet_v2", image, weights=str(weight_files[name]), depth=3)
    pixels = draw_pixels(64, 96, count=1)
    expected = compute_features(
        build_classifier("mobilenet_v2"), list(ENCODERS["mobilenet_v2"].features[:3]), pixels
    )
    for found, wanted in zip(keras.Model(image, features)(pixels), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
@pytest.mark.parametrize(
    ("file", "arch", "words"),
    [
        ("absent.h5", "unet-mobilenet_v2-w2-d2", "absent.h5: no such file; expected imagenet, none, or"),
        ("text.h5", "unet-mobilenet_v2-w2-d2", "damaged or truncated HDF5 file of 10 bytes"),
        ("mobilenet.weights.h5", "unet-resnet50-w2-d2", "do not fit ResNet50"),
        ("mobilenet.h5", "unet-xception-w2-d2", "do not fit Xception"),
        ("mobilenet.weights.h5", "segnet-w64-d1", "do not fit VGG16"),
        ("vgg.weights.h5", "segnet-w32-d1", "level 1, the network 32; expected a SegNet of width 64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    file: str, arch: str, words: str, weight_files: dict[str, Path]
) -> None:
    path = weight_files["text.h5"].with_name(file)
    with pytest.raises(ModelError, match=words) as caught:
        build_architecture((32, 32, 3), 2, options=parse_architecture(arch), weights=str(path))
    assert "\n" not in str(caught.value)


def test_a_segnet_begins_as_vgg16(weight_files: dict[str, Path]) -> None:
    options, path = parse_architecture("segnet-w64-d2"), str(weight_files["vgg.weights.h5"])
    model = build_architecture((32, 48, 3), 2, options=options, weights=path)
    pixels = draw_pixels(32, 48, count=1)
    (found,) = compute_features(model, ["enc2_2_relu"], pixels)
    (expected,) = compute_features(build_vgg(), ["block2_conv2"], pixels)
    # the epsilon of four normalisations
    np.testing.assert_allclose(found, expected, atol=5e-3 * expected.max())
    assert expected.std() > 0.01


def test_failed_downloads_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(keras.applications, "MobileNetV2", fail)
    words = (
        r"^--weights imagenet: cannot be downloaded \(.*no route.*\); fetch them elsewhere, then --weights F"
    )
    with pytest.raises(ModelError, match=words) as caught:
        build_features("mobilenet_v2", keras.Input((64, 64, 3)), weights="imagenet")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="for 3 channels, the network takes 4"):
        build_features("mobilenet_v2", keras.Input((64, 64, 4)), weights="imagenet")


# the backend


def test_the_architectures_know_no_backend() -> None:
    folder = Path(histoseg_train.architectures.__file__).parent
    imported: set[str] = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    assert "keras" in imported
    assert imported <= {*sys.stdlib_module_names, "histoseg", "histoseg_train", "keras"}


def test_names_are_read_without_keras() -> None:
    script = (
        "import sys; from histoseg_train.architectures import parse_architecture; "
        "parse_architecture('deeplabv3plus-resnet50-o8'); "
        "sys.exit(bool({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=120).returncode == 0
