from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from histoseg.errors import ModelError
from histoseg_train.kerasfile import check_file, summarize_error


def write_archive(path: Path, config: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        archive.writestr("metadata.json", "{}")
    return path


def functional(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"module": "keras", "class_name": "Functional", "config": {"name": "m", "layers": list(layers)}}


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (
            {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "code"}},
            "'code'.*never executed",
        ),
        ({"module": "keras.utils", "class_name": "get_file", "config": {}}, "keras.utils.get_file"),
        ({"module": "keras.src.utils.file_utils", "class_name": "get_file", "config": {}}, "get_file"),
        ({"module": "keras.layers", "class_name": "add", "config": {}}, "keras.layers.add"),
        ({"module": "builtins", "class_name": "eval", "config": "1"}, "builtins.eval"),
        ({"module": "builtins", "class_name": "function", "config": "system"}, "function 'system'"),
        ({"module": "os", "class_name": "system", "config": {}}, "os.system"),
        ({"module": "keras.layers", "class_name": ["Lambda"], "config": {}}, "Lambda"),
    ],
)
def test_what_is_no_plain_keras_class_is_refused(tmp_path: Path, layer: dict[str, Any], said: str) -> None:
    pytest.importorskip("keras")
    with pytest.raises(ModelError, match=said):
        check_file(write_archive(tmp_path / "m.keras", functional(layer)))


def test_a_configuration_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not JSON"):
        check_file(write_archive(tmp_path / "m.keras", "[" * 200_000))


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_layers_operations_and_activations_of_keras_pass(tmp_path: Path, suffix: str) -> None:
    keras = pytest.importorskip("keras")
    image = keras.Input((8, 8, 3))
    features = keras.layers.Conv2D(
        4, 3, padding="same", activation="relu", kernel_regularizer="l2", kernel_constraint="max_norm"
    )(image)
    features = keras.layers.Activation(keras.activations.silu)(features)
    if suffix == "keras":
        features = keras.ops.relu(features)
    path = tmp_path / f"m.{suffix}"
    keras.Model(image, keras.layers.Softmax()(features)).save(path)
    assert check_file(path) == suffix


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('Exception encountered when calling layer "a" (type Dense).\n\nNo fit.\n\nCall arguments received '
         'by layer "a" (type Dense):\n  - inputs', 'layer "a" (type Dense): No fit.'),
        ("Exception encountered when calling A.call().\n\n\x1b[1mNo fit.\x1b[0m\n\nArguments received by "
         "A.call():\n  - x", "A.call(): No fit."),
        ("No fit.", "No fit."),
    ],
)  # fmt: skip
def test_what_a_layer_raised_is_told_in_short(text, said):
    assert summarize_error(ValueError(text)) == said
