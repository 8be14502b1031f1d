"""What is no whole Keras segmentation model is refused in one line, for the right reason, and never run."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from histoseg.errors import ModelError
from histoseg_export.load import load_model


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bad_models/lfs-pointer.h5", "Git-LFS pointer"),
        ("bad_models/truncated.hdf5", "damaged or truncated HDF5"),
        ("models/anilsathyan-slim_reshape_v2.h5", "'lambda_1' (Lambda)"),
        ("models/codymaughan-model-dsbowl2018-gray-v1-0.h5", "'lambda_1' (Lambda)"),
        ("models/leadingindia-liver-wsi-unet.h5", "weights only"),
        ("models/mvirgo-full_CNN_model.h5", "saved by Keras 2.0.8"),
    ],
)
def test_real_files_are_refused(name, reason, shared_data):
    assert reason in refusal(shared_data / name)


def test_every_bad_model_is_refused(shared_data):
    for path in sorted((shared_data / "bad_models").iterdir()):
        refusal(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("nested", [False, True])
def test_lambda_is_not_executed(suffix, nested, tmp_path, keras_files):
    import keras

    witness = tmp_path / "executed"
    image = keras.Input((16, 16, 3))
    layer = keras.layers.Lambda(lambda x, path=str(witness): (open(path, "w").close(), x)[1], name="evil")  # noqa: PTH123
    model = keras.Model(image, keras.layers.Conv2D(2, 1)(layer(image)))
    if nested:
        outer = keras.Input((16, 16, 3))
        model = keras.Model(outer, keras.layers.Softmax()(model(outer)))
    path = tmp_path / f"model{suffix}"
    model.save(path)
    witness.unlink()  # building the model ran it
    assert "'evil' (Lambda) would run Python code" in refusal(path)
    assert not witness.exists()


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
    assert f"needs {module}.system, not part of Keras" in refusal(_write_archive(tmp_path, document))


def test_training_configuration_does_not_matter(tmp_path, keras_files):
    import keras

    @keras.saving.register_keras_serializable(package="tests")
    def own_loss(truth, found):
        return keras.ops.mean(truth * found)

    model = load_model(keras_files["softmax"])
    model.compile(loss=own_loss)
    model.save(tmp_path / "compiled.keras")
    load_model(tmp_path / "compiled.keras")


def test_missing_folder_and_foreign_kinds(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"\x00" * 100)
    assert "no such file" in refusal(tmp_path / "none.h5")
    assert "is a folder" in refusal(tmp_path)
    assert "neither a .keras archive nor an HDF5 file" in refusal(tmp_path / "model.keras")


def test_truncated_archive_is_refused(tmp_path, keras_files):
    content = keras_files["softmax"].read_bytes()
    (tmp_path / "model.keras").write_bytes(content[: len(content) // 2])
    assert "damaged or truncated .keras archive" in refusal(tmp_path / "model.keras")


def test_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "no config.json" in refusal(tmp_path / "model.keras")


@pytest.mark.parametrize("name", ["model.weights.h5", "weights.h5"])
def test_weights_only_are_refused(name, tmp_path, keras_files):
    load_model(keras_files["softmax"]).save_weights(tmp_path / "model.weights.h5")
    (tmp_path / "model.weights.h5").rename(tmp_path / name)
    assert "weights only" in refusal(tmp_path / name)


def test_suffix_does_not_decide(tmp_path, keras_files):
    shutil.copy(keras_files["h5"], tmp_path / "model.keras")
    shutil.copy(keras_files["softmax"], tmp_path / "model.bin")
    for name in ("model.keras", "model.bin"):
        assert load_model(tmp_path / name).count_params() > 0


def test_models_of_another_shape_are_refused(tmp_path, keras_files):
    import keras
    from keras import layers

    image = keras.Input((16, 16, 3), name="image")
    other = keras.Input((16, 16, 3), name="other")
    maps = layers.Conv2D(2, 1)(image)
    cases = {
        "its output has shape (any, 512)": keras.Model(image, layers.Flatten()(maps)),
        "has 2 outputs": keras.Model(image, [maps, layers.Conv2D(1, 1)(maps)]),
        "has 2 inputs (image, other)": keras.Model([image, other], layers.Add()([image, other])),
        "its input has shape (any, 16, 16, 5)": keras.Sequential(
            [keras.Input((16, 16, 5)), layers.Conv2D(2, 1)]
        ),
    }
    for reason, model in cases.items():
        model.save(tmp_path / "model.keras")
        assert reason in refusal(tmp_path / "model.keras")


def test_lists_of_one_tensor_are_unpacked(tmp_path, keras_files):
    import keras

    image = keras.Input((16, 16, 3))
    keras.Model([image], [keras.layers.Conv2D(2, 1)(image)]).save(tmp_path / "model.h5")
    assert tuple(load_model(tmp_path / "model.h5").output.shape) == (None, 16, 16, 2)


def _write_archive(folder: Path, document: dict) -> Path:
    path = folder / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(document))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.9.0"}))
    return path
