"""Weights without a network: filled to the last number, or refused with the list of what is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histoseg.errors import ModelError, OptionError
from histoseg_export.describe import ExportOptions
from histoseg_export.export import export_model
from histoseg_export.load import LoadOptions, load_model

tf_keras = pytest.importorskip("tf_keras")

LIVER = '''
from {module} import Input, Model, layers

def build():
    """Encoder and decoder of 32, 64 and 128 filters, without skips."""
    image = x = Input((256, 256, 3))
    for filters, after in ((32, "pool"), (64, "pool"), (128, "up"), (64, "up"), (32, None)):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
            x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D()(x) if after == "pool" else layers.UpSampling2D()(x) if after else x
    return Model(image, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x))
'''

SMALL = """
from {module} import Input, Model, layers

def build(input_shape, filters=(4, 4), classes=2):
    image = x = Input(input_shape)
    for index, count in enumerate(filters):
        x = layers.Conv2D(count, 3, padding="same", name="step_%d" % index)(x)
        x = layers.BatchNormalization(name="norm_%d" % index)(x)
    return Model(image, layers.Conv2D(classes, 1, activation="softmax", name="last")(x))

def more(input_shape):
    return build(input_shape, (4, 4, 4))

def fewer(input_shape):
    return build(input_shape, (4,))

def wider(input_shape):
    return build(input_shape, (4, 5))

def broken():
    raise RuntimeError("no such thing")

def nothing():
    return 3
"""


@pytest.fixture(scope="module", autouse=True)
def _tensorflow(keras_files):
    """TensorFlow is loaded as the exporter does it."""


@pytest.fixture(params=["keras", "tf_keras"])
def builder(request, tmp_path) -> Path:
    path = tmp_path / "network.py"
    path.write_text(SMALL.format(module=request.param))
    return path


def fill(model):
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.1, 1, values.shape) for values in model.get_weights()])
    return model


def run_builder(path: Path, **options):
    names: dict = {}
    exec(path.read_text(), names)  # noqa: S102  what the test wrote
    return fill(names["build"]((None, None, 3), **options))


@pytest.mark.parametrize("module", ["keras", "tf_keras"])
def test_real_weights_convert_with_a_builder(module, tmp_path, shared_data):
    path = tmp_path / "liver.py"
    path.write_text(LIVER.format(module=module))
    weights = shared_data / "models" / "leadingindia-liver-wsi-unet.h5"
    options, load = ExportOptions(spacing_um_px=0.5, tile=64), LoadOptions(builder=f"{path}:build")
    result = export_model(weights, tmp_path / "liver.onnx", options, load=load)
    assert result.parities[0].label_agreement == 1
    assert "all 62 arrays of the file are in the network, and no others" in result.notes


@pytest.mark.parametrize("name", ["model.weights.h5", "model.h5", "whole.h5", "whole.keras"])
def test_weights_of_every_layout_fill_a_network(name, builder, tmp_path):
    model = run_builder(builder)
    if name.startswith("whole"):
        model.save(tmp_path / name)
    elif name == "model.h5" and "tf_keras" not in builder.read_text():
        pytest.skip("Keras 3 writes no such files")
    else:
        model.save_weights(tmp_path / name)
    loaded = load_model(tmp_path / name, LoadOptions(builder=f"{builder}:build"))
    assert f"all {len(model.weights)} arrays" in loaded.notes[0]
    for old, new in zip(model.get_weights(), loaded.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("more", r"0 are not used \(none\), and of 20 in the network 6 not filled \(.*\(3, 3, 4, 4\)"),
        ("fewer", r"of 14 arrays in the file 6 are not used .*\(3, 3, 4, 4\).* 0 not filled \(none\)"),
        ("wider", r"are not used .*\(4,\).*not filled .*\(5,\)"),
    ],
)
def test_a_partial_fit_is_refused_with_the_list(function, said, builder, tmp_path):
    run_builder(builder).save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ModelError, match=said):
        load_model(tmp_path / "model.weights.h5", LoadOptions(builder=f"{builder}:{function}"))


def test_names_decide_where_they_are_the_same(tmp_path):
    """Two layers of one shape in another order: their names tell them apart."""
    order = """
from tf_keras import Input, Model, layers
def build(input_shape, names=("{first}", "{second}")):
    image = Input(input_shape)
    maps = [layers.Conv2D(2, 1, name=name)(image) for name in names]
    return Model(image, layers.Add()(maps))
"""
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text(order.format(first="left", second="right"))
    second.write_text(order.format(first="right", second="left"))
    model = run_builder(first)
    model.save_weights(tmp_path / "model.h5")
    loaded = load_model(tmp_path / "model.h5", LoadOptions(builder=f"{second}:build")).model
    for name in ("left", "right"):
        pairs = zip(model.get_layer(name).get_weights(), loaded.get_layer(name).get_weights(), strict=True)
        assert all((old == new).all() for old, new in pairs)


def test_architectures_of_this_project_are_built_by_name(tmp_path):
    from histoseg_train.architectures import UnetOptions, build_unet

    options = UnetOptions(width=4, depth=2, stem_stride=2, skip_width=3)
    model = fill(build_unet((None, None, 3), 3, options=options))
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = load_model(tmp_path / "model.weights.h5", LoadOptions(architecture=options.name))
    pixels = np.random.default_rng(0).uniform(0, 1, (1, 32, 32, 3)).astype(np.float32)
    found, expected = (m.predict(pixels, verbose=0) for m in (loaded.model, model))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ModelError, match=r"do not have the shapes of unet-w5-d2"):
        load_model(tmp_path / "model.weights.h5", LoadOptions(architecture="unet-w5-d2"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architecture": "vnet"}, "expected one of .*unet"),
        ({"architecture": "unet-q4"}, "'q4' is no"),
        ({"architecture": "unet-w0"}, "width is 0"),
        ({"architecture": "unet", "builder": "a.py:f"}, "both given"),
        ({"builder": "a.py"}, "expected FILE.py:FUNCTION"),
        ({"builder": "none.py:f"}, "no such Python file"),
        ({"builder": "{file}:absent"}, "has no function 'absent' .*build"),
        ({"builder": "{file}:broken"}, "RuntimeError: no such thing"),
        ({"builder": "{file}:nothing"}, "gave int, expected a keras.Model"),
    ],
)
def test_wrong_options_are_named(options, said, tmp_path, keras_files):
    (tmp_path / "network.py").write_text(SMALL.format(module="keras"))
    given = {key: value.format(file=tmp_path / "network.py") for key, value in options.items()}
    load_model(keras_files["softmax"]).model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(OptionError, match=said):
        load_model(tmp_path / "model.weights.h5", LoadOptions(**given))


def test_without_a_network_the_ways_out_are_named(tmp_path, keras_files):
    load_model(keras_files["softmax"]).model.save_weights(tmp_path / "model.weights.h5")
    (tmp_path / "model.weights.h5").rename(tmp_path / "weights.h5")
    with pytest.raises(ModelError, match=r"weights only.*--builder FILE\.py:FUNCTION.*--arch"):
        load_model(tmp_path / "weights.h5")
