"""Tiny Keras models with non-trivial weights, saved once, and exported once each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the export extra is not installed")

from histoseg_export.describe import ExportOptions
from histoseg_export.export import export_model
from histoseg_export.quiet import import_tensorflow
from histoseg_export.report import ExportResult

TILE = 64
OPTIONS = ExportOptions(tile=TILE, spacing_um_px=0.5)

KerasFiles = dict[str, Path]
Export = Callable[[str], ExportResult]


def set_statistics(model: Any, seed: int) -> Any:
    """Give every weight, batch-norm statistics among them, a value that shows when it is lost."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        values = layer.get_weights()
        if type(layer).__name__ == "BatchNormalization":  # gamma, beta, mean, variance
            ranges = [(0.8, 1.6), (0.0, 0.4), (-0.2, 0.2), (0.1, 0.4)]
            layer.set_weights([rng.uniform(*r, v.shape) for r, v in zip(ranges, values, strict=True)])
        elif values:
            fans = [max(value.size / value.shape[-1], 1) for value in values]
            layer.set_weights([rng.normal(0, f**-0.5, v.shape) for f, v in zip(fans, values, strict=True)])
    return model


def balance(model: Any, last: str) -> Any:
    """Set the last biases so that every class has its share of pixels."""
    import keras

    layer = model.get_layer(last)
    activation, layer.activation = layer.activation, keras.activations.linear
    size = model.inputs[0].shape[1] or TILE
    tiles = np.random.default_rng(9).uniform(0, 1, (4, size, size, model.inputs[0].shape[3]))
    logits = np.asarray(keras.Model(model.inputs[0], layer.output)(tiles))
    kernel, bias = layer.get_weights()
    spread = logits.std()
    layer.set_weights([kernel * 2 / spread, (bias - np.median(logits, (0, 1, 2))) * 2 / spread])
    layer.activation = activation
    return model


def build_unet(
    *, up: str, classes: int, activation: str | None, channels: int = 3, size: int | None = None
) -> Any:
    """Build a U-Net of depth 2 with three filters."""
    from keras import Input, Model, layers

    def block(x: Any, name: str) -> Any:
        x = layers.Conv2D(3, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
        return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm")(x))

    image = x = Input((size, size, channels))
    skips = []
    for level in range(2):
        skips.append(block(x, f"down{level}"))
        x = layers.MaxPooling2D(name=f"pool{level}")(skips[-1])
    x = block(x, "bottom")
    for level in (1, 0):
        if up == "transposed":
            x = layers.Conv2DTranspose(3, 2, strides=2, use_bias=False, name=f"up{level}")(x)
            x = layers.BatchNormalization(name=f"up{level}_norm")(x)
        else:
            x = layers.UpSampling2D(interpolation=up, name=f"up{level}")(x)
        x = block(layers.Concatenate(name=f"join{level}")([skips[level], x]), f"dec{level}")
    x = layers.Conv2D(classes, 1, activation=activation, name="logits")(x)
    return balance(set_statistics(Model(image, x, name="tiny_unet"), seed=classes), "logits")


def build_global() -> Any:
    """Build a network whose every pixel sees the mean of the whole tile."""
    from keras import Input, Model, layers

    image = Input((None, None, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="features")(image)
    context = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(x)
    x = layers.Multiply(name="gate")([x, layers.Conv2D(4, 1, activation="sigmoid", name="weigh")(context)])
    x = layers.Conv2D(3, 1, activation="softmax", name="head")(x)
    model = set_statistics(Model(image, x, name="global_context"), seed=3)
    return balance(model, "head")


def build_sequential() -> Any:
    """Build a `Sequential` with separable and strided convolutions, fixed to 64 px."""
    from keras import Input, Sequential, layers

    model = Sequential(
        [
            Input((TILE, TILE, 3)),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="elu", name="stem"),
            layers.SeparableConv2D(4, 3, padding="same", activation="relu", name="separable"),
            layers.BatchNormalization(name="norm"),
            layers.Conv2DTranspose(2, 4, strides=2, padding="same", name="up"),
            layers.Softmax(name="probabilities"),
        ]
    )
    return balance(set_statistics(model, seed=4), "up")


@pytest.fixture(scope="session")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> KerasFiles:
    """Return saved Keras models by name."""
    import_tensorflow()
    folder = tmp_path_factory.mktemp("keras")
    models = {
        "softmax": build_unet(up="transposed", classes=2, activation="softmax"),
        "logits": build_unet(up="nearest", classes=3, activation=None),
        "sigmoid": build_unet(up="bilinear", classes=1, activation="sigmoid", size=TILE),
        "grey": build_unet(up="transposed", classes=1, activation=None, channels=1),
        "global": build_global(),
        "sequential": build_sequential(),
    }
    files = {}
    for name, model in models.items():
        files[name] = folder / f"{name}.keras"
        model.save(files[name])
    files["h5"] = folder / "softmax.h5"
    models["softmax"].save(files["h5"])
    return files


@pytest.fixture(scope="session")
def export_one(keras_files: KerasFiles, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return a function that exports a model by name; the second call gives the first one's result."""

    @cache
    def export(name: str) -> ExportResult:
        target = tmp_path_factory.mktemp("onnx") / f"{name}.onnx"
        return export_model(keras_files[name], target, OPTIONS)

    return export


@pytest.fixture
def noise() -> np.ndarray:
    """Return tiles that use every value at every place: five of them, so that no batch size is special."""
    return np.random.default_rng(0).integers(0, 256, (5, TILE, TILE, 3), dtype=np.uint8)
