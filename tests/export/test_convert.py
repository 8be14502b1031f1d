"""The exported graph: its interface, its economy, and that it computes what Keras computes."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from histoseg.errors import ModelError
from histoseg.session import open_session
from histoseg.transform import NORMALIZATIONS
from histoseg_export.convert import IR_VERSION, OPSET, convert_model, to_reference_input
from histoseg_export.describe import Description, ExportOptions, build_card, describe_model
from histoseg_export.load import load_model
from histoseg_export.probe import Tiling
from histoseg_export.prove import predict_reference
from histoseg_export.retarget import fix_size
from histoseg_export.variants import Variant, pack_variant

NAMES = ["softmax", "logits", "sigmoid", "grey", "global", "sequential"]
TILE = 64
DESCRIPTION = Description("any", ("a", "b"), ("#000000", "#ffffff"), 0.5, "unit", (TILE, TILE), "logits", 2)


@pytest.fixture(params=NAMES)
def exported(request, export_one):
    return export_one(request.param)


def test_interface_is_uint8_nhwc_of_any_batch(exported):
    model = onnx.load(exported.target)
    (image,), (output,) = model.graph.input, model.graph.output
    dims = [d.dim_value or d.dim_param for d in image.type.tensor_type.shape.dim]
    assert (image.name, dims) == ("image", ["batch", TILE, TILE, 3])
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    dims = [d.dim_value or d.dim_param for d in output.type.tensor_type.shape.dim]
    assert (output.name, dims) == ("probabilities", ["batch", TILE, TILE, exported.card.output.channels])
    assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_graph_is_checked_and_states_what_it_needs(exported):
    model = onnx.load(exported.target)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    assert model.producer_name == "histoseg"


def test_graph_holds_no_leftovers(exported):
    counts = Counter(node.op_type for node in onnx.load(exported.target).graph.node)
    assert counts["Transpose"] <= 2
    assert counts["Cast"] == 1
    leftovers = {"BatchNormalization", "Gather", "Identity", "Shape", "Slice", "Tile", "Pad", "Unsqueeze"}
    assert not leftovers & set(counts)


def test_unet_keeps_only_its_own_operators(export_one):
    counts = Counter(node.op_type for node in onnx.load(export_one("softmax").target).graph.node)
    # cast, normalisation, batch norm and softmax are all folded
    assert counts == {
        "Transpose": 2, "Cast": 1, "Conv": 6, "Relu": 5, "MaxPool": 2, "ConvTranspose": 2, "Concat": 2,
        "Sigmoid": 1,
    }  # fmt: skip


def test_nodes_carry_the_layers_names(export_one):
    names = [node.name for node in onnx.load(export_one("softmax").target).graph.node]
    assert {"down0_conv/Conv", "pool1/MaxPool", "up0/ConvTranspose", "dec0_conv/Conv"} <= set(names)
    assert len(set(names)) == len(names)


def test_nothing_of_this_machine_is_in_the_file(exported):
    content = exported.target.read_bytes()
    for word in (str(exported.target.parent), socket.gethostname(), "site-packages", "/tmp"):  # noqa: S108
        assert word.encode() not in content


def test_probabilities_equal_keras_on_noise(exported, keras_files, noise):
    name = exported.target.stem
    description = _describe(keras_files[name])
    expected = predict_reference(load_model(keras_files[name]).model, noise, description)
    with open_session(exported.target, provider="cpu") as session:
        found = session.run(noise)
        alone = session.run(noise[:1])
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(alone - found[:1]).max() < 1e-6
    assert np.abs(found.sum(-1) - 1).max() < 1e-5


@pytest.mark.parametrize("normalization", sorted(NORMALIZATIONS))
@pytest.mark.parametrize("name", ["softmax", "grey"])
def test_every_normalization_holds_up_to_the_border(name, normalization, keras_files, noise, tmp_path):
    model = load_model(keras_files[name]).model
    description = replace(_describe(keras_files[name]), normalization=normalization)
    graph = convert_model(model, description)
    path = tmp_path / "model.onnx"
    card = build_card(description, tiling=Tiling(4, 0, 0), parity={}, provenance={})
    path.write_bytes(pack_variant(Variant(graph, card)))
    with open_session(path, provider="cpu") as session:
        found = session.run(noise)
    # padding is zero after the normalisation: a folded mean would show at the border
    difference = np.abs(found - predict_reference(model, noise, description))
    # values up to 255 make logits in the hundreds, which float32 keeps to 1e-4
    assert difference.max() < (2e-3 if normalization in ("none", "caffe") else 2e-5)


def test_caffe_is_what_keras_applications_does(noise):
    from keras.applications.imagenet_utils import preprocess_input

    found = to_reference_input(noise, replace(DESCRIPTION, normalization="caffe"), channels=3)
    np.testing.assert_allclose(found, preprocess_input(noise.astype(np.float32), mode="caffe"), atol=1e-4)


def test_exports_have_the_same_bytes(keras_files, tmp_path, monkeypatch, export_one):
    from histoseg_export.export import export_model

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    options = ExportOptions(tile=TILE, spacing_um_px=0.5)
    contents = []
    for count in range(2):
        target = tmp_path / f"{count}" / "model.onnx"
        target.parent.mkdir()
        export_model(keras_files["softmax"], target, options)
        contents.append(target.read_bytes())
    assert contents[0] == contents[1]
    graphs = [onnx.load_from_string(contents[0]).graph, onnx.load(export_one("softmax").target).graph]
    assert graphs[0] == graphs[1]


def test_keras_and_h5_of_a_model_agree_on_every_pixel(export_one, noise):
    labels = []
    for name in ("softmax", "h5"):
        with open_session(export_one(name).target, provider="cpu") as session:
            labels.append(session.run(noise).argmax(-1))
    assert (labels[0] == labels[1]).all()
    assert 0.2 < labels[0].mean() < 0.8


def test_other_tile_than_the_models_own(keras_files, noise):
    fixed = fix_size(load_model(keras_files["sequential"]).model, (96, 32))
    assert tuple(fixed.outputs[0].shape) == (None, 32, 96, 2)


def test_tile_that_does_not_fit_is_refused(keras_files):
    with pytest.raises(ModelError, match=r"does not take tiles of 50x50 px.*--tile"):
        fix_size(load_model(keras_files["softmax"]).model, (50, 50))


def test_output_of_another_size_is_refused():
    import keras

    image = keras.Input((64, 64, 3))
    model = keras.Model(image, keras.layers.Conv2D(2, 3)(image))
    with pytest.raises(ModelError, match="output is 62x62 px for an input of 64x64"):
        fix_size(model, (64, 64))


def test_operation_that_onnx_lacks_names_its_layer():
    import keras

    image = keras.Input((16, 16, 3))
    x = keras.ops.erfinv(keras.layers.Conv2D(4, 3, padding="same", name="before")(image))
    model = keras.Model(image, keras.layers.Conv2D(2, 1)(x))
    with pytest.raises(ModelError, match=r"ONNX has no operation.*\(Erfinv\)"):
        convert_model(model, replace(DESCRIPTION, tile=(16, 16)))


def test_an_optimizer_of_tf2onnx_that_fails_is_left_out(keras_files, monkeypatch):
    from tf2onnx import optimizer

    class Spoiler:
        """Takes a graph apart, and fails."""

        def optimize(self, graph, iteration):
            for node in list(graph.get_nodes()):
                graph.remove_node(node.name)
            raise ValueError("cannot fold")

    model, description = load_model(keras_files["softmax"]).model, _describe(keras_files["softmax"])
    expected = convert_model(model, description)
    monkeypatch.setitem(optimizer._optimizers, "spoiler", Spoiler)
    assert convert_model(model, description) == expected


MEASURE_CONVERSION = """
import numpy as np
from histoseg_export.quiet import import_tensorflow, prepare_environment
prepare_environment()
import_tensorflow()
import keras
from histoseg_export.convert import convert_model
from histoseg_export.describe import Description

def read_mib(key):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines[key].split()[0]) / 1024

def convert(filters):
    image = x = keras.Input((16, 16, 3))
    for count in (filters, filters, 2):
        x = keras.layers.Conv2D(count, 3, padding="same")(x)
    model, classes, colors = keras.Model(image, x), ("a", "b"), ("#000000", "#ffffff")
    convert_model(model, Description("any", classes, colors, 1.0, "unit", (16, 16), "logits", 2))
    return 4 * model.count_params() / 2**20

convert(2)  # what TensorFlow loads the first time is not counted
before = read_mib("VmRSS")
weights = convert(2000)
print(weights, read_mib("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_conversion_holds_few_copies_of_the_weights():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_CONVERSION], capture_output=True, text=True, check=True, timeout=300
    )
    weights, grown = map(float, done.stdout.split())
    assert weights > 100
    assert grown < 25 * weights, "tf2onnx by itself takes sixty times as much"


def _describe(path):
    return describe_model(load_model(path).model, None, ExportOptions(tile=TILE, spacing_um_px=0.5))
