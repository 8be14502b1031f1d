"""Files of Keras 2, in the dialects of its releases: read as they were meant, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from histoseg.errors import ModelError
from histoseg_export.load import load_model

tf_keras = pytest.importorskip("tf_keras")

TRAINING = {
    "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None, "dtype": "float32"}},
    "bias_initializer": {"class_name": "Zeros", "config": {"dtype": "float32"}},
    "kernel_regularizer": {"class_name": "MyOwnPenalty", "config": {"strength": 3}},
    "kernel_constraint": None,
}
GENERAL = ("dtype", "groups", "batch_size", "ragged", "sparse")


@pytest.fixture(scope="module", autouse=True)
def _tensorflow(keras_files):
    """TensorFlow is loaded as the exporter does it."""


def build(last="sigmoid", *, middle=None, upsample=None):
    layers = tf_keras.layers
    image = tf_keras.Input((16, 24, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    x = layers.BatchNormalization()(layers.MaxPooling2D()(x))
    x = (upsample or layers.UpSampling2D())(x)
    x = x if middle is None else middle(x)
    return tf_keras.Model(image, layers.Conv2D(1, 1, activation=last)(x))


def save_old(model, path: Path, version: str, *, change=lambda config: config, backend="tensorflow") -> Path:
    """Save a model and rewrite its configuration the way an older release wrote it."""
    model.save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["class_name"] = {"Functional": "Model"}.get(config["class_name"], config["class_name"])
        for layer in config["config"]["layers"]:
            layer.pop("module", None)
            layer.pop("registered_name", None)
            layer.pop("build_config", None)
            inner = layer["config"]
            for key in GENERAL:
                inner.pop(key, None)
            if "filters" in inner:
                inner.update(TRAINING)
        if version < "2.2.3" and config["class_name"] == "Sequential":
            config["config"] = config["config"]["layers"]
        file.attrs["model_config"] = json.dumps(change(config))
        for holder in (file, file["model_weights"]):
            holder.attrs["keras_version"] = version
            holder.attrs["backend"] = backend
    return path


def predict(model, seed=0):
    pixels = np.random.default_rng(seed).uniform(0, 1, (2, *model.inputs[0].shape[1:])).astype(np.float32)
    return model.predict(pixels, verbose=0)


@pytest.mark.parametrize("version", ["2.0.8", "2.1.6", "2.2.4", "2.2.4-tf", "2.3.1", "2.4.0", "2.15.0"])
def test_every_release_is_read(version, tmp_path):
    model = build()
    loaded = load_model(save_old(model, tmp_path / "model.h5", version))
    assert loaded.reader.startswith("tf_keras")
    np.testing.assert_allclose(predict(loaded.model), predict(model), atol=1e-6)


def test_sequential_of_keras_2_0_is_a_list(tmp_path):
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.Conv2D(3, 3, padding="same", input_shape=(16, 16, 3)),
            layers.Conv2DTranspose(2, 3, padding="same"),
        ]
    )
    path = save_old(model, tmp_path / "model.h5", "2.0.8")
    with h5py.File(path) as file:
        config = json.loads(file.attrs["model_config"])
        config["config"] = [layer for layer in config["config"] if layer["class_name"] != "InputLayer"]
        config["config"][0]["config"]["batch_input_shape"] = [None, 16, 16, 3]
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(config)
    np.testing.assert_allclose(predict(load_model(path).model), predict(model), atol=1e-6)


@pytest.mark.parametrize(
    ("version", "shifted"),
    [("2.2.4", True), ("2.3.1", True), ("2.2.4-tf", False), ("2.3.0-tf", False), ("2.6.0", False)],
)
def test_bilinear_upsampling_is_what_its_release_did(version, shifted, tmp_path):
    import tensorflow as tf

    model = build(upsample=tf_keras.layers.UpSampling2D(interpolation="bilinear"))
    loaded = load_model(save_old(model, tmp_path / "model.h5", version))
    resize = tf.compat.v1.image.resize_bilinear if shifted else tf.image.resize
    features = tf_keras.Model(model.inputs, model.layers[-3].output)
    pixels = np.random.default_rng(0).uniform(0, 1, (1, 16, 24, 3)).astype(np.float32)
    expected = model.layers[-1](resize(features(pixels), (16, 24)))
    np.testing.assert_allclose(loaded.model.predict(pixels, verbose=0), expected, atol=1e-5)
    assert any("bilinear" in note for note in loaded.notes) == (shifted or version == "2.2.4-tf")


def test_hard_sigmoid_keeps_the_slope_it_was_trained_with(tmp_path):
    import keras
    import tensorflow as tf

    model = build(last="hard_sigmoid")
    model.layers[-1].set_weights([np.ones((1, 1, 4, 1)) / 4, np.zeros(1)])
    path = save_old(model, tmp_path / "model.h5", "2.2.4")
    np.testing.assert_allclose(predict(load_model(path).model), predict(model), atol=1e-6)
    values = tf.constant([-1.0, 0.5, 2.0])
    ours, theirs = (np.asarray(m.activations.hard_sigmoid(values)) for m in (tf_keras, keras))
    assert np.abs(ours - theirs).max() > 0.01  # why Keras 3 must not read it


def test_kernels_trained_on_theano_are_turned(tmp_path):
    model = build()
    path = save_old(model, tmp_path / "model.h5", "2.1.6", backend="theano")
    loaded = load_model(path)
    first, turned = model.layers[1].get_weights()[0], loaded.model.layers[1].get_weights()[0]
    np.testing.assert_array_equal(first[::-1, ::-1], turned)
    assert any("Theano" in note for note in loaded.notes)
    separable = build(middle=tf_keras.layers.SeparableConv2D(4, 3, padding="same"))
    path = save_old(separable, tmp_path / "model.h5", "2.1.6", backend="theano")
    with pytest.raises(ModelError, match=r"trained on Theano.*SeparableConv2D"):
        load_model(path)


def test_operations_of_tensorflow_2_are_read(tmp_path):
    def change(config):
        for layer in config["config"]["layers"]:
            if layer["name"] == "halve":
                node = {
                    "name": "halve",
                    "op": "RealDiv",
                    "input": ["x", "halve/y"],
                    "attr": {"T": {"type": "DT_FLOAT"}},
                }
                layer["class_name"] = "TensorFlowOpLayer"
                layer["config"] = {"name": "halve", "node_def": node, "constants": {"1": 2.0}}
        return config

    model = build(middle=tf_keras.layers.Rescaling(0.5, name="halve"))
    loaded = load_model(save_old(model, tmp_path / "model.h5", "2.2.4-tf", change=change))
    np.testing.assert_allclose(predict(loaded.model), predict(model), atol=1e-6)


def test_tensorflow_functions_of_keras_2_4_are_read(tmp_path):
    import tensorflow as tf

    image = tf_keras.Input((16, 16, 3))
    x = tf.nn.leaky_relu(tf_keras.layers.Conv2D(4, 3, padding="same")(image / 255.0), 0.3)
    x = tf.image.resize(x[:, ::2, ::2], (16, 16))
    model = tf_keras.Model(image, tf.math.sigmoid(tf_keras.layers.Conv2D(1, 1)(tf.concat([x, x * 2.0], -1))))
    model.save(tmp_path / "model.h5")
    loaded = load_model(tmp_path / "model.h5")
    np.testing.assert_allclose(predict(loaded.model), predict(model), atol=1e-6)


def change_layers(change):
    """Return a change of a configuration that is told each layer."""

    def walk(config):
        for layer in config["config"]["layers"]:
            change(layer)
        return config

    return walk


def test_numbers_that_were_arrays_are_read(tmp_path):
    def change(layer):
        if layer["class_name"] == "LeakyReLU":
            layer["config"]["alpha"] = {"type": "ndarray", "value": layer["config"]["alpha"]}

    model = build(middle=tf_keras.layers.LeakyReLU(0.3))
    path = save_old(model, tmp_path / "model.h5", "2.2.4-tf", change=change_layers(change))
    np.testing.assert_allclose(predict(load_model(path).model), predict(model), atol=1e-6)


@pytest.mark.parametrize("name", ["BatchNormalizationV1", "BatchNormalizationV2"])
def test_batch_normalization_is_known_by_its_old_names(name, tmp_path):
    def change(layer):
        if layer["class_name"] == "BatchNormalization":
            layer["class_name"] = name

    model = build()
    path = save_old(model, tmp_path / "model.h5", "2.1.6-tf", change=change_layers(change))
    np.testing.assert_allclose(predict(load_model(path).model), predict(model), atol=1e-6)


def test_softmax_of_tensorflow_is_softmax(tmp_path):
    def change(layer):
        if layer["config"].get("activation") == "softmax":
            layer["config"]["activation"] = "softmax_v2"

    model = build(last="softmax", middle=tf_keras.layers.Conv2D(4, 1, activation="softmax"))
    path = save_old(model, tmp_path / "model.h5", "2.2.4-tf", change=change_layers(change))
    np.testing.assert_allclose(predict(load_model(path).model), predict(model), atol=1e-6)


def save_replicas(path: Path, *, arguments=("i", "parts"), more=lambda x: x) -> tf_keras.Model:
    """Save what `multi_gpu_model` makes of a network, and return the network."""
    layers = tf_keras.layers
    network = build()
    image = tf_keras.Input((16, 24, 3))
    slices = [
        layers.Lambda(
            lambda x, **_: x, name=f"slice_{part}", arguments=dict(zip(arguments, (part, 2), strict=True))
        )(image)
        for part in range(2)
    ]
    joined = layers.Concatenate(axis=0, name="joined")([network(part) for part in slices])
    save_old(tf_keras.Model(image, more(joined)), path, "2.2.4")
    return network


def test_copies_for_several_gpus_are_merged(tmp_path):
    network = save_replicas(tmp_path / "model.h5")
    loaded = load_model(tmp_path / "model.h5")
    np.testing.assert_allclose(predict(loaded.model), predict(network), atol=1e-6)
    assert any("copies for several GPUs were merged" in note for note in loaded.notes)


@pytest.mark.parametrize(
    "options", [{"arguments": ("i", "count")}, {"more": tf_keras.layers.Activation("relu")}]
)
def test_what_only_looks_like_copies_is_refused(options, tmp_path):
    save_replicas(tmp_path / "model.h5", **options)
    with pytest.raises(ModelError, match=r"'slice_0' \(Lambda\)"):
        load_model(tmp_path / "model.h5")


def test_keras_1_is_known_by_its_words(tmp_path):
    def change(layer):
        if "filters" in layer["config"]:
            layer["config"] |= {"nb_filter": layer["config"].pop("filters"), "border_mode": "same"}

    path = save_old(build(), tmp_path / "model.h5", "1.0.0", change=change_layers(change))
    with h5py.File(path, "r+") as file:
        del file.attrs["keras_version"]
    with pytest.raises(ModelError, match=r"saved by Keras 1, .*expected Keras 2\.0 or later"):
        load_model(path)


def test_names_of_layers_in_pieces_are_weights(tmp_path):
    build().save_weights(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        file.attrs["layer_names0"] = file.attrs["layer_names"]
        del file.attrs["layer_names"]
    with pytest.raises(ModelError, match="holds weights only"):
        load_model(tmp_path / "model.h5")


def test_keras_1_is_refused_by_name(tmp_path):
    path = save_old(build(), tmp_path / "model.h5", "1.2.2")
    with pytest.raises(ModelError, match=r"saved by Keras 1\.2\.2.*expected Keras 2\.0 or later"):
        load_model(path)


def test_a_file_without_a_version_is_read_by_its_dialect(tmp_path):
    path = save_old(build(), tmp_path / "model.h5", "2.2.4")
    with h5py.File(path, "r+") as file:
        del file.attrs["keras_version"]
    assert load_model(path).reader.startswith("tf_keras")


def test_keras_archives_of_keras_2_are_read(tmp_path):
    model = build()
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert loaded.reader.startswith("tf_keras")
    np.testing.assert_allclose(predict(loaded.model), predict(model), atol=1e-6)
