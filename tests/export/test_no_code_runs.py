"""Nothing from a model file is executed: layers whose bytecode, or whose operation, would touch a file."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from histoseg.errors import ModelError
from histoseg_export.describe import ExportOptions
from histoseg_export.export import export_model
from histoseg_export.load import LoadOptions, load_model

tf_keras = pytest.importorskip("tf_keras")

FORMATS = ["keras/.keras", "keras/.h5", "tf_keras/.keras", "tf_keras/.h5"]


def touching(witness: Path):
    """Return a function whose bytecode touches a file."""
    return lambda x, path=str(witness): (open(path, "w").close(), x)[1]  # noqa: PTH123


def build(generation: str, layer_of, *, nested: bool = False):
    """Build a network around a layer; building runs it."""
    module = tf_keras if generation == "tf_keras" else __import__("keras")
    image = module.Input((16, 16, 3))
    model = module.Model(image, module.layers.Conv2D(2, 1, name="maps")(layer_of(module)(image)))
    if nested:
        outer = module.Input((16, 16, 3))
        model = module.Model(outer, module.layers.Softmax()(model(outer)))
    return model


def save(model, path: Path, witness: Path) -> Path:
    model.save(path)
    witness.unlink(missing_ok=True)
    return path


def refusal(path: Path, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, LoadOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("nested", [False, True])
def test_lambda_layers_are_not_executed(kind, nested, tmp_path, keras_files):
    generation, suffix = kind.split("/")
    witness = tmp_path / "executed"
    model = build(generation, lambda m: m.layers.Lambda(touching(witness), name="evil"), nested=nested)
    assert witness.exists()  # the bytecode does what it is meant to
    path = save(model, tmp_path / f"model{suffix}", witness)
    message = refusal(path)
    assert "'evil' (Lambda) would run Python code" in message
    assert "write what each does as evil(x)" in message
    assert not witness.exists()


@pytest.mark.parametrize("kind", FORMATS[2:])
def test_lambda_activations_of_keras_2_are_not_executed(kind, tmp_path, keras_files):
    generation, suffix = kind.split("/")
    witness = tmp_path / "executed"
    model = build(generation, lambda m: m.layers.Conv2D(3, 1, activation=touching(witness), name="evil"))
    assert "'evil' (lambda) would run Python code" in refusal(save(model, tmp_path / f"m{suffix}", witness))
    assert not witness.exists()


def test_lambda_of_a_saved_model_is_its_graph(tmp_path, keras_files):
    witness = tmp_path / "executed"
    model = build("tf_keras", lambda m: m.layers.Lambda(touching(witness), name="evil"))
    path = save(model, tmp_path / "model", witness)
    assert b"evil" in (path / "keras_metadata.pb").read_bytes()  # bytecode and all, never opened
    options = ExportOptions(spacing_um_px=0.5, activation="logits")
    result = export_model(path, tmp_path / "model.onnx", options)
    assert result.parities[0].label_agreement == 1
    assert not witness.exists()


def _write(x, path):
    import tensorflow as tf

    with tf.control_dependencies([tf.io.write_file(path, "x")]):
        return tf.identity(x)


def _call_python(x, path):
    import tensorflow as tf

    found = tf.py_function(lambda values: values, [x], tf.float32)
    return tf.ensure_shape(found, x.shape)


def _read(x, path):
    import tensorflow as tf

    return x + tf.strings.to_number(tf.io.read_file(path))


def _draw(x, path):
    import tensorflow as tf

    return x + tf.random.uniform(tf.shape(x))


@pytest.mark.parametrize(
    ("function", "operation"),
    [(_write, "WriteFile"), (_call_python, "EagerPyFunc"), (_read, "ReadFile"), (_draw, "RandomUniform")],
)
def test_graphs_that_do_more_than_compute_are_refused(function, operation, tmp_path, keras_files):
    witness = tmp_path / "executed"
    witness.write_text("1")
    layer = tf_keras.layers.Lambda(function, arguments={"path": str(witness)})
    path = save(build("tf_keras", lambda m: layer), tmp_path / "model", witness)
    assert operation in refusal(path)
    assert not witness.exists()


def test_operations_of_keras_2_that_do_more_than_compute_are_refused(tmp_path, keras_files):
    witness = tmp_path / "executed"
    path = tmp_path / "model.h5"
    build("tf_keras", lambda m: m.layers.Activation("relu", name="step")).save(path)
    write = {"name": "step", "op": "WriteFile"}
    for kind, config, name in (
        ("TFOpLambda", {"function": "io.write_file"}, "io.write_file"),
        ("TFOpLambda", {"function": "raw_ops.WriteFile"}, "WriteFile"),
        ("TensorFlowOpLayer", {"node_def": write, "constants": {"0": str(witness)}}, "WriteFile"),
        ("ClassMethod", {"cls_symbol": "io"}, "class ClassMethod"),
        ("StringLookup", {"vocabulary": str(witness)}, "StringLookup"),
    ):
        layer = {"class_name": kind, "config": {"name": "step", **config}}
        with h5py.File(path, "r+") as file:
            network = json.loads(file.attrs["model_config"])
            network["config"]["layers"][1] |= layer
            file.attrs["model_config"] = json.dumps(network)
        assert name in refusal(path)
    assert not witness.exists()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("as_class", [False, True])
def test_the_callers_file_replaces_a_lambda(kind, as_class, tmp_path, keras_files):
    generation, suffix = kind.split("/")
    witness = tmp_path / "executed"
    layer_name = "lambda-1" if suffix == ".h5" else "lambda"
    model = build(generation, lambda m: m.layers.Lambda(touching(witness), name=layer_name))
    path = save(model, tmp_path / f"model{suffix}", witness)
    name = "lambda_1" if suffix == ".h5" else "lambda_"
    if as_class:
        source = f"import {generation}\nclass {name}({generation}.layers.Layer):\n"
        source += "    def call(self, x):\n        return x * 2.0\n"
    else:
        source = f"def {name}(x):\n    return x * 2.0\n"
    (tmp_path / "own.py").write_text(source)
    loaded = load_model(path, LoadOptions(custom_objects=tmp_path / "own.py")).model
    pixels = np.random.default_rng(0).uniform(0, 1, (1, 16, 16, 3)).astype(np.float32)
    kernel, bias = loaded.get_weights()
    np.testing.assert_allclose(loaded.predict(pixels, verbose=0), 2 * pixels @ kernel[0, 0] + bias, atol=1e-5)
    assert not witness.exists()


@pytest.mark.parametrize("generation", ["keras", "tf_keras"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_the_callers_file_brings_layers_and_activations(generation, suffix, tmp_path, keras_files):
    source = f"""
import {generation} as module
def bend(x):
    return x * x
class Scale(module.layers.Layer):
    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor
    def call(self, x):
        return x * self.factor
    def get_config(self):
        return {{**super().get_config(), "factor": self.factor}}
"""
    (tmp_path / "own.py").write_text(source)
    names: dict = {}
    exec(source, names)  # noqa: S102  what the test wrote
    model = build(generation, lambda m: names["Scale"](3.0, name="scale"))
    last = model.layers[-1]
    last.activation = names["bend"]
    path = tmp_path / f"model{suffix}"
    model.save(path)
    message = refusal(path)
    assert "Scale" in message
    assert "bend" in message
    options = ExportOptions(spacing_um_px=0.5, activation="logits")
    load = LoadOptions(custom_objects=tmp_path / "own.py")
    result = export_model(path, tmp_path / "model.onnx", options, load=load)
    assert result.parities[0].label_agreement == 1


def test_layers_of_the_other_generation_are_named(tmp_path, keras_files):
    witness = tmp_path / "executed"
    model = build("tf_keras", lambda m: m.layers.Lambda(touching(witness), name="step"))
    path = save(model, tmp_path / "model.keras", witness)
    (tmp_path / "own.py").write_text("import keras\nclass step(keras.layers.Layer):\n    pass\n")
    message = refusal(path, custom_objects=tmp_path / "own.py")
    assert "class 'step' is a layer of another Keras, expected one of tf_keras" in message
