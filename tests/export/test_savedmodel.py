"""SavedModel folders are read as a graph and numbers, whoever wrote them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from histoseg.errors import ModelError
from histoseg.session import open_session
from histoseg_export.describe import ExportOptions, describe_model
from histoseg_export.export import export_model
from histoseg_export.load import LoadOptions, load_model

tf_keras = pytest.importorskip("tf_keras")


@pytest.fixture(scope="module", autouse=True)
def _tensorflow(keras_files):
    """TensorFlow is loaded as the exporter does it."""


def build(module, *, size=None, outputs=1):
    layers = module.layers
    image = module.Input((size, size, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    x = layers.Dropout(0.5)(layers.BatchNormalization()(layers.MaxPooling2D()(x)))
    x = layers.Conv2DTranspose(3, 2, strides=2)(x)
    maps = [layers.Conv2D(2, 1, activation="softmax", name=f"map_{i}")(x) for i in range(outputs)]
    model = module.Model(image, maps if outputs > 1 else maps[0])
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.1, 1, values.shape) for values in model.get_weights()])
    return model


def save(model, path: Path) -> Path:
    (model.save if isinstance(model, tf_keras.Model) else model.export)(path)
    return path


def predict(model, size=16):
    pixels = np.random.default_rng(1).uniform(0, 1, (3, size, size, 3)).astype(np.float32)
    return model.predict(pixels, verbose=0)


@pytest.fixture(params=["keras", "tf_keras"])
def module(request):
    return tf_keras if request.param == "tf_keras" else pytest.importorskip("keras")


@pytest.mark.parametrize("size", [None, 16])
def test_a_saved_model_computes_what_keras_does(module, size, tmp_path):
    model = build(module, size=size)
    loaded = load_model(save(model, tmp_path / "model"))
    assert "signature 'serving_default'" in loaded.reader
    np.testing.assert_allclose(predict(loaded.model), predict(model), atol=1e-5)


def test_a_saved_model_becomes_onnx(module, tmp_path):
    model = build(module)
    path = save(model, tmp_path / "model")
    result = export_model(path, tmp_path / "model.onnx", ExportOptions(tile=32, spacing_um_px=0.5))
    assert result.parities[0].label_agreement == 1
    assert result.card.output.activation == "softmax"
    assert len(result.card.provenance["source_sha256"]) == 64
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    with open_session(result.target, provider="cpu") as session:
        found = session.run(noise)
    assert np.abs(found - model.predict(noise / np.float32(255), verbose=0)).max() < 1e-5


def test_outputs_and_signatures_are_chosen_by_name(tmp_path):
    import tensorflow as tf

    model = build(tf_keras, outputs=2)
    path = save(model, tmp_path / "model")
    with pytest.raises(ModelError, match=r"has 2 outputs \('map_0'.*'map_1'.*--output NAME"):
        load_model(path)
    found = load_model(path, LoadOptions(output="map_1")).model
    np.testing.assert_allclose(predict(found), predict(model)[1], atol=1e-5)
    with pytest.raises(ModelError, match="no output 'other'"):
        load_model(path, LoadOptions(output="other"))

    class Holder(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3))])
        def bright(self, image):
            return tf.nn.softmax(image, axis=-1)

        @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3))])
        def dark(self, image):
            return tf.nn.softmax(-image, axis=-1)

    holder = Holder()
    tf.saved_model.save(holder, str(tmp_path / "two"), {"bright": holder.bright, "dark": holder.dark})
    with pytest.raises(ModelError, match="but 'bright', 'dark'; choose one with --signature NAME"):
        load_model(tmp_path / "two")
    bright, dark = (
        load_model(tmp_path / "two", LoadOptions(signature=name)).model for name in ("bright", "dark")
    )
    assert (predict(bright).argmax(-1) == predict(dark).argmin(-1)).all()


@pytest.mark.parametrize("resource", [True, False])
def test_saved_models_of_tensorflow_1_are_read(resource, tmp_path):
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, (None, 16, 16, 3), name="image")
        with v1.variable_scope("net", use_resource=resource):
            kernel, bias = v1.get_variable("kernel", (3, 3, 3, 2)), v1.get_variable("bias", (2,))
        maps = tf.nn.softmax(tf.nn.conv2d(image / 255.0, kernel, 1, "SAME") + bias)
        session.run(v1.global_variables_initializer())
        pixels = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)
        expected = session.run(maps, {image: pixels})
        v1.saved_model.simple_save(session, str(tmp_path / "model"), {"image": image}, {"maps": maps})
    model = load_model(tmp_path / "model").model
    np.testing.assert_allclose(model.predict(pixels, verbose=0), expected, atol=1e-5)
    described = describe_model(model, None, ExportOptions(spacing_um_px=0.5))
    assert (described.normalization, described.activation) == ("none", "softmax")


def test_damaged_folders_are_refused(tmp_path):
    whole = save(build(tf_keras), tmp_path / "whole")

    def spoil(name, change):
        path = tmp_path / name
        shutil.copytree(whole, path)
        change(path)
        with pytest.raises(ModelError) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    graph, numbers = "saved_model.pb", "variables/variables.data-00000-of-00001"
    assert "holds no variables/variables.index" in spoil(
        "no_variables", lambda path: shutil.rmtree(path / "variables")
    )
    assert "cannot be read" in spoil("short", lambda path: (path / numbers).write_bytes(b"x" * 40))
    assert "damaged" in spoil(
        "cut", lambda path: (path / graph).write_bytes((path / graph).read_bytes()[:999])
    )
    assert "holds no graph" in spoil("empty", lambda path: (path / graph).write_bytes(b""))


def test_a_fixed_number_of_images_is_refused(tmp_path):
    import tensorflow as tf

    class Holder(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 16, 16, 3))])
        def run(self, image):
            return tf.nn.softmax(image)

    holder = Holder()
    tf.saved_model.save(holder, str(tmp_path / "model"), holder.run)
    with pytest.raises(ModelError, match="batches of images of any number"):
        load_model(tmp_path / "model")


def test_a_saved_model_that_scales_its_images_gets_them_as_they_are(module, tmp_path):
    layers = module.layers
    image = module.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, padding="same")(layers.Rescaling(1 / 255.0)(image))
    model = module.Model(image, layers.Conv2D(2, 1, activation="softmax")(layers.BatchNormalization()(x)))
    loaded = load_model(save(model, tmp_path / "model")).model
    assert describe_model(loaded, None, ExportOptions(spacing_um_px=0.5)).normalization == "none"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("saved_model.pb", "its saved_model.pb is a Git-LFS pointer"),
        ("variables/variables.data-00000-of-00001", "variables.data-00000-of-00001 is a Git-LFS pointer"),
    ],
)
def test_saved_models_that_were_fetched_in_part_say_so(damage, reason, tmp_path):
    path = save(build(tf_keras, size=16), tmp_path / "model")
    (path / damage).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match=reason):
        load_model(path)
