"""What is no whole Keras segmentation model is refused in one line, for the right reason, and never run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from histoseg.errors import ModelError, OptionError
from histoseg_export.load import LoadOptions, load_model


def refusal(path: Path, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, LoadOptions(**options))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bad_models/lfs-pointer.h5", "Git-LFS pointer"),
        ("bad_models/truncated.hdf5", "damaged or truncated HDF5"),
        ("models/anilsathyan-slim_reshape_v2.h5", "write what each does as lambda_(x), lambda_1(x)"),
        ("models/codymaughan-model-dsbowl2018-gray-v1-0.h5", "'lambda_1' (Lambda)"),
        ("models/leadingindia-liver-wsi-unet.h5", "weights only"),
    ],
)
def test_real_files_are_refused(name, reason, shared_data):
    assert reason in refusal(shared_data / name)


@pytest.mark.parametrize(
    ("name", "reader", "shape"),
    [
        ("mvirgo-full_CNN_model.h5", "tf_keras", (None, 80, 160, 1)),
        ("firminoandre-unet_model.h5", "Keras 3", (None, 128, 128, 1)),
    ],
)
def test_real_files_are_read_by_their_own_generation(name, reader, shape, shared_data):
    loaded = load_model(shared_data / "models" / name)
    assert loaded.reader.startswith(reader)
    assert tuple(loaded.model.outputs[0].shape) == shape


def test_every_bad_model_is_refused(shared_data):
    for path in sorted((shared_data / "bad_models").iterdir()):
        refusal(path)


def test_lambda_as_activation_is_refused(tmp_path, keras_files):
    document = {
        "module": "keras", "class_name": "Functional", "registered_name": None,
        "config": {"name": "net", "layers": [{
            "module": "keras.layers", "class_name": "Conv2D", "registered_name": None,
            "config": {"name": "conv", "activation": {"class_name": "__lambda__", "config": {"code": ""}}},
        }]},
    }  # fmt: skip
    assert "'conv' (lambda)" in refusal(_write_archive(tmp_path, document))


@pytest.mark.parametrize("module", ["os", "my_layers", "keras_evil"])
def test_foreign_classes_are_refused(module, tmp_path):
    layer = {"module": module, "class_name": "system", "config": {"name": "a"}, "registered_name": "x>system"}
    document = {"module": "keras", "class_name": "Functional", "config": {"layers": [layer]}}
    message = refusal(_write_archive(tmp_path, document))
    assert f"needs {module}.system, not part of Keras" in message
    assert "--custom-objects" in message


def test_training_configuration_does_not_matter(tmp_path, keras_files):
    import keras

    @keras.saving.register_keras_serializable(package="tests")
    def own_loss(truth, found):
        return keras.ops.mean(truth * found)

    model = load_model(keras_files["softmax"]).model
    model.compile(loss=own_loss, metrics=[own_loss])
    for name in ("compiled.keras", "compiled.h5"):
        model.save(tmp_path / name)
        load_model(tmp_path / name)


def test_folders_and_missing_files(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "no such file" in refusal(tmp_path / "none.h5")
    assert "folder without saved_model.pb (it holds notes.txt)" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_truncated_files_are_refused(suffix, share, tmp_path, keras_files):
    content = keras_files["softmax" if suffix == "keras" else "h5"].read_bytes()
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content[: int(len(content) * share)])
    assert "damaged or truncated" in refusal(path)


def test_damaged_weights_are_refused(tmp_path, keras_files):
    content = bytearray(keras_files["softmax"].read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(byte ^ 0x5A for byte in content[middle : middle + 200])
    (tmp_path / "model.keras").write_bytes(content)
    assert "damaged or truncated" in refusal(tmp_path / "model.keras")


def test_weights_that_are_no_numbers_are_refused(tmp_path, keras_files):
    path = tmp_path / "model.h5"
    shutil.copy(keras_files["h5"], path)
    with h5py.File(path, "r+") as file:
        kernels = []
        file.visit(lambda name: kernels.append(name) if name.endswith("kernel") else None)
        file[kernels[0]][0, 0, 0, 0] = np.nan
    assert "holds NaN or infinite values" in refusal(path)


def test_weights_in_another_file_are_refused(tmp_path, keras_files):
    with h5py.File(tmp_path / "model.h5", "w") as file:
        with h5py.File(keras_files["h5"]) as whole:
            file.attrs["model_config"] = whole.attrs["model_config"]
        file["model_weights"] = h5py.ExternalLink(str(keras_files["h5"]), "/model_weights")
    assert "takes 'model_weights' from another file" in refusal(tmp_path / "model.h5")


def test_files_of_a_later_keras_say_so(tmp_path, keras_files):
    path = tmp_path / "later.keras"
    with zipfile.ZipFile(keras_files["softmax"]) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            text = old.read(name).replace(b'"MaxPooling2D"', b'"BestPooling2D"')
            metadata = json.dumps({"keras_version": "3.99.1"}).encode()
            new.writestr(name, metadata if name == "metadata.json" else text)
    message = refusal(path)
    assert "needs keras.layers.BestPooling2D" in message
    assert "install keras>=3.99.1" in message


def test_suffix_does_not_decide(tmp_path, keras_files):
    shutil.copy(keras_files["h5"], tmp_path / "model.keras")
    shutil.copy(keras_files["softmax"], tmp_path / "model.bin")
    for name in ("model.keras", "model.bin"):
        assert load_model(tmp_path / name).model.count_params() > 0


def test_models_of_another_shape_are_refused(tmp_path, keras_files):
    import keras
    from keras import layers

    image = keras.Input((16, 16, 3), name="image")
    other = keras.Input((16, 16, 3), name="other")
    volume = keras.Input((8, 8, 8, 1))
    maps = layers.Conv2D(2, 1, name="maps")(image)
    five = keras.Input((16, 16, 5))
    edges = layers.Conv2D(1, 1, name="edges")(image)
    cases = {
        "its output has shape (any, 2): a classifier's": keras.Model(image, layers.GlobalMaxPool2D()(maps)),
        "--output maps takes the map before that": keras.Model(image, layers.Reshape((256, 2))(maps)),
        "has 2 outputs ('maps' (any, 16, 16, 2), 'edges' (any, 16, 16, 1))": keras.Model(
            image, [maps, edges]
        ),
        "has 2 inputs (image, other)": keras.Model([image, other], layers.Add()([image, other])),
        "its input has shape (any, 16, 16, 5)": keras.Model(five, layers.Conv2D(2, 1)(five)),
        "it takes volumes": keras.Model(volume, layers.Conv3D(2, 1)(volume)),
    }
    for reason, model in cases.items():
        model.save(tmp_path / "model.keras")
        assert reason in refusal(tmp_path / "model.keras")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("halved", "the map before that, 'maps', is (any, 8, 8, 3): build it with --builder"),
        ("permuted", "--output maps takes the map before that, (any, 16, 16, 3)"),
        ("any_size", "--output maps takes the map before that, (any, any, any, 3)"),
        ("flattened", "--output maps takes the map before that"),
        ("sigmoids", "build it with --builder FILE.py:FUNCTION, without the Reshape after 'maps'"),
        ("first", "--output maps takes the map before that, (any, 3, 16, 16)"),
        ("labels", "one value for a pixel"),
        (
            "mixed",
            "a map of which the rows were joined, expected a map, (batch, height, width, classes); save",
        ),
        ("dense", "a classifier's, or flat"),
    ],
)
def test_flat_outputs_are_told_apart(end, reason, tmp_path, keras_files):
    import keras
    from keras import layers

    shapes = {"any_size": (None, None, 3), "first": (3, 16, 16)}
    image = keras.Input(shapes.get(end, (16, 16, 3)))
    side, order = 2 if end == "halved" else 1, "channels_first" if end == "first" else "channels_last"
    maps = layers.Conv2D(3, side, strides=side, data_format=order, name="maps")(image)
    ends = {
        "halved": lambda: layers.Softmax()(layers.Reshape((64, 3))(maps)),
        "permuted": lambda: layers.Permute((2, 1))(layers.Reshape((3, 256))(layers.Permute((3, 1, 2))(maps))),
        "mixed": lambda: layers.Permute((2, 1))(layers.Reshape((3, 256))(maps)),
        "any_size": lambda: layers.Activation("softmax")(layers.Reshape((-1, 3))(maps)),
        "flattened": lambda: layers.Flatten()(maps),
        "sigmoids": lambda: layers.Activation("sigmoid")(layers.Reshape((256, 3))(maps)),
        "first": lambda: layers.Softmax()(layers.Permute((2, 1))(layers.Reshape((3, 256))(maps))),
        "labels": lambda: keras.ops.argmax(maps, axis=-1),
        "dense": lambda: layers.Dense(256)(layers.Flatten()(maps)),
    }
    keras.Model(image, ends[end]()).save(tmp_path / "model.keras")
    message = refusal(tmp_path / "model.keras")
    assert reason in message
    assert ("not a segmentation model" in message) == (end == "dense")


def test_outputs_are_called_what_their_author_called_them(tmp_path, keras_files):
    import keras
    from keras import layers

    image = keras.Input((16, 16, 3), name="image")
    outputs = {"mask": layers.Conv2D(2, 1, name="a")(image), "edge": layers.Conv2D(1, 1, name="b")(image)}
    keras.Model({"image": image}, outputs).save(tmp_path / "model.keras")
    assert "'mask' (any, 16, 16, 2)" in refusal(tmp_path / "model.keras")
    for name, channels in (("mask", 2), ("edge", 1), ("b", 1)):
        found = load_model(tmp_path / "model.keras", LoadOptions(output=name)).model
        assert found.outputs[0].shape[-1] == channels


@pytest.mark.parametrize("name", ["bad_models/lfs-pointer.h5", "bad_models/truncated.hdf5", "missing.h5"])
def test_files_are_judged_before_tensorflow_is_loaded(name, shared_data):
    program = (
        "import sys; from pathlib import Path\n"
        "from histoseg.errors import ModelError; from histoseg_export.load import load_model\n"
        "try:\n    load_model(Path(sys.argv[1]))\n"
        "except ModelError:\n    print('tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(shared_data / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_an_unpacked_archive_says_so(tmp_path, keras_files):
    with zipfile.ZipFile(keras_files["softmax"]) as archive:
        archive.extractall(tmp_path)
    assert "is an unpacked .keras archive; pack its files" in refusal(tmp_path)


def test_output_picks_an_output_or_a_layer(tmp_path, keras_files):
    import keras
    from keras import layers

    image = keras.Input((16, 16, 3))
    maps = layers.Conv2D(2, 1, name="maps")(image)
    flat = layers.Reshape((256, 2), name="flat")(maps)
    keras.Model(image, [flat, layers.Conv2D(1, 1, name="edges")(image)]).save(tmp_path / "model.keras")
    for name, channels in (("edges", 1), ("maps", 2)):
        found = load_model(tmp_path / "model.keras", LoadOptions(output=name)).model
        assert tuple(found.outputs[0].shape) == (None, 16, 16, channels)
    notes = load_model(tmp_path / "model.keras", LoadOptions(output="maps")).notes
    assert any("ends at its layer 'maps'" in note for note in notes)
    assert "no output or layer 'mask'" in refusal(tmp_path / "model.keras", output="mask")


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_output_picks_a_layer_of_a_row_of_layers(suffix, tmp_path, keras_files):
    import keras
    from keras import layers

    ends = [layers.Reshape((256, 2)), layers.Softmax()]
    keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(2, 1, name="maps"), *ends]).save(
        tmp_path / f"model.{suffix}"
    )
    assert "--output maps takes" in refusal(tmp_path / f"model.{suffix}")
    found = load_model(tmp_path / f"model.{suffix}", LoadOptions(output="maps")).model
    assert tuple(found.outputs[0].shape) == (None, 16, 16, 2)


@pytest.mark.parametrize("generation", ["keras", "tf_keras"])
def test_output_picks_a_network_within_the_network(generation, tmp_path, keras_files):
    module = pytest.importorskip(generation)
    layers = module.layers
    inner = module.Input((16, 16, 3))
    network = module.Model(inner, layers.Conv2D(2, 3, padding="same")(inner), name="network")
    image, shared = module.Input((16, 16, 3)), layers.Conv2D(3, 1, name="shared")
    maps = network(shared(shared(image)))
    model = module.Model(image, layers.Concatenate()([layers.Reshape((256, 2))(maps)] * 2))
    model.save(tmp_path / "model.h5")
    found = load_model(tmp_path / "model.h5", LoadOptions(output="network")).model
    pixels = np.random.default_rng(0).uniform(0, 1, (1, 16, 16, 3)).astype(np.float32)
    expected = model.predict(pixels, verbose=0)[..., :2].reshape(1, 16, 16, 2)
    np.testing.assert_allclose(found.predict(pixels, verbose=0), expected, atol=1e-6)
    assert "no output or layer 'shared' with one result" in refusal(tmp_path / "model.h5", output="shared")


def test_lists_of_one_tensor_are_unpacked(tmp_path, keras_files):
    import keras

    image = keras.Input((16, 16, 3))
    keras.Model([image], [keras.layers.Conv2D(2, 1)(image)]).save(tmp_path / "model.h5")
    assert tuple(load_model(tmp_path / "model.h5").model.output.shape) == (None, 16, 16, 2)


def test_networks_without_an_input_size_are_refused(tmp_path, keras_files):
    import keras

    keras.Sequential([keras.layers.Conv2D(2, 3)]).save(tmp_path / "model.keras")
    assert "does not say the shape of its images" in refusal(tmp_path / "model.keras")


@pytest.mark.parametrize("precision", ["mixed_float16", "float16"])
def test_low_precision_is_raised_and_announced(precision, tmp_path, keras_files):
    import keras
    from keras import layers

    image = keras.Input((16, 16, 3))
    maps = layers.Conv2D(2, 3, padding="same", dtype=precision)(image)
    model = keras.Model(image, layers.Softmax(dtype="float32")(maps))
    for name in ("model.keras", "model.h5"):
        model.save(tmp_path / name)
        loaded = load_model(tmp_path / name)
        assert any(precision in note for note in loaded.notes)
        assert {layer.compute_dtype for layer in loaded.model.layers} == {"float32"}
        for old, new in zip(model.get_weights(), loaded.model.get_weights(), strict=True):
            np.testing.assert_array_equal(old.astype(np.float32), new)


def test_channels_first_models_take_and_give_channels_last(tmp_path, keras_files):
    import keras
    from keras import layers

    image = keras.Input((3, 16, 24))
    maps = layers.Conv2D(2, 3, padding="same", data_format="channels_first")(image)
    keras.Model(image, maps).save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert tuple(loaded.model.inputs[0].shape) == (None, 16, 24, 3)
    assert tuple(loaded.model.outputs[0].shape) == (None, 16, 24, 2)
    pixels = np.random.default_rng(0).uniform(0, 1, (1, 3, 16, 24)).astype(np.float32)
    expected = keras.saving.load_model(tmp_path / "model.keras").predict(pixels, verbose=0)
    found = loaded.model.predict(pixels.transpose(0, 2, 3, 1), verbose=0)
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("size", [(16, 24), (None, None)])
def test_channels_first_models_may_end_channels_last(size, tmp_path, keras_files):
    tf_keras = pytest.importorskip("tf_keras")
    layers = tf_keras.layers
    image = tf_keras.Input((3, *size))
    maps = layers.Conv2D(2, 3, padding="same", data_format="channels_first")(image)
    maps = layers.Activation("softmax")(layers.Permute((2, 3, 1))(maps))
    tf_keras.Model(image, maps).save(tmp_path / "model.h5")
    loaded = load_model(tmp_path / "model.h5").model
    assert tuple(loaded.inputs[0].shape) == (None, *size, 3)
    assert tuple(loaded.outputs[0].shape) == (None, *size, 2)


def test_a_custom_file_that_fails_is_named(tmp_path, keras_files):
    (tmp_path / "own.py").write_text("1 / 0")
    for path, said in ((tmp_path / "own.py", "ZeroDivisionError"), (tmp_path / "none.py", "no such Python")):
        with pytest.raises(OptionError, match=said):
            load_model(keras_files["softmax"], LoadOptions(custom_objects=path))


def _write_archive(folder: Path, document: dict) -> Path:
    path = folder / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(document))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.9.0"}))
    return path
