from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner, Result
from keras import layers

from histoseg.errors import HistosegError
from histoseg_train.architectures import build_architecture, parse_architecture
from histoseg_train.cli import command
from histoseg_train.receptive import find_receptive_field
from histoseg_train.summary import count_flops, summarize_network


def run(*words: object) -> Result:
    return CliRunner().invoke(command, ["summary", *map(str, words)])


def measure_extent(model: Any, size: int, axis: int) -> int:
    """Return how far from each other two input rows (or columns) lie that change one output pixel.

    All kernels are positive and all inputs too, so that nothing cancels; one brighter row at a time.
    """
    for layer in model.layers:
        weights = layer.get_weights()
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights(
                [np.ones_like(w) if i in (0, 3) else np.zeros_like(w) for i, w in enumerate(weights)]
            )
        elif weights:
            layer.set_weights([np.full_like(w, 1 / (w.size / w.shape[-1])) for w in weights])
    images = np.ones((size + 1, size, size, 3), np.float32)
    for place in range(size):
        images[(place, slice(None), place) if axis else (place, place)] = 1e5
    logits = keras.Model(model.inputs, model.get_layer("head_logits").output)
    maps = np.concatenate([np.asarray(logits([images[i : i + 32]])) for i in range(0, size + 1, 32)])
    profile = maps[:, size // 2, :, 0] if axis else maps[:, :, size // 2, 0]
    changed = np.abs(profile[:-1] / profile[-1] - 1) > 1e-5
    middle = changed[:, size // 2 - 4 : size // 2 + 4]  # every phase of the strides
    return max(int(np.ptp(np.flatnonzero(column))) + 1 for column in middle.T)


@pytest.mark.parametrize(
    ("name", "size"),
    [("unet-w2-d1", 64), ("unet-w2-d2-s2-k2", 128), ("unetplusplus-w2-d2", 96), ("segnet-w2-d2", 96)],
)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_receptive_field_is_what_changes_an_output(name: str, size: int, axis: int) -> None:
    model = build_architecture((size, size, 3), 2, options=parse_architecture(name))
    field = find_receptive_field(model)
    assert measure_extent(model, size, axis) == (field.width_px if axis else field.height_px)


def chain(*parts: Any) -> Any:
    image = features = keras.Input((64, 64, 3))
    for part in parts:
        features = part(features)
    return keras.Model(image, features)


@pytest.mark.parametrize(
    ("parts", "size"),
    [
        ([layers.Conv2D(1, (3, 7), padding="same")], (7, 3)),
        ([layers.Conv2D(1, 3, dilation_rate=6, padding="same")], (13, 13)),
        ([layers.SeparableConv2D(1, 3, padding="same"), layers.ReLU()], (3, 3)),
        ([layers.MaxPooling2D(2), layers.Conv2D(1, 3, padding="same"), layers.UpSampling2D(2)], (6, 6)),
        # two source pixels of four, one of them half outside: the border is no exception
        ([layers.AveragePooling2D(4), layers.UpSampling2D(4, interpolation="bilinear")], (8, 8)),
        ([layers.ZeroPadding2D(1), layers.Conv2D(1, 3, strides=2), layers.Conv2D(1, 3)], (7, 7)),
    ],
)
def test_fields_of_single_layers(parts: list[Any], size: tuple[int, int]) -> None:
    field = find_receptive_field(chain(*parts))
    assert (field.width_px, field.height_px) == size
    assert not field.is_global


def test_global_pooling_is_told_apart() -> None:
    image = keras.Input((32, 32, 3))
    mean = layers.GlobalAveragePooling2D(keepdims=True)(image)
    mixed = layers.Add()([layers.Conv2D(3, 3, padding="same")(image), layers.Conv2D(3, 1)(mean)])
    field = find_receptive_field(keras.Model(image, mixed))
    assert (field.width_px, field.is_global) == (3, True)


@pytest.mark.parametrize(
    ("layer", "flops"),
    [
        (layers.Conv2D(5, 3, padding="same"), 2 * 64 * 64 * 9 * 3 * 5),
        (layers.Conv2D(6, 3, strides=2, groups=3, padding="same"), 2 * 32 * 32 * 9 * 1 * 6),
        (layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2), 2 * 64 * 64 * 9 * 3 * 2),
        (layers.SeparableConv2D(5, 3, padding="same"), 2 * 64 * 64 * (9 * 3 + 3 * 5)),
        (layers.Conv2DTranspose(5, 2, strides=2), 2 * 64 * 64 * 4 * 3 * 5),
        (layers.MaxPooling2D(2), 0),
    ],
)
def test_operations_are_two_per_multiply_add(layer: Any, flops: int) -> None:
    chain(layer)
    assert count_flops(layer) == flops


@pytest.mark.parametrize("name", ["unet-w2-d2", "deeplabv3-mobilenet_v2-w8"])
def test_summaries_add_up(name: str) -> None:
    options = parse_architecture(name)
    small, large = (summarize_network(options, tile_px=side, classes=3) for side in (64, 128))
    assert small.parameters == sum(group.parameters for group in small.groups)
    assert small.layers > sum(group.layers for group in small.groups)
    assert small.receptive_field == large.receptive_field
    assert 3.9 * small.flops < large.flops <= 4 * small.flops
    assert small.receptive_field.is_global is name.startswith("deeplab")


def test_the_command_prints_a_table_or_json() -> None:
    words = run("unet-w2-d1", "--tile", 64)
    assert words.exit_code == 0, words.output
    assert "receptive field: 18 x 18 px" in words.output
    said = json.loads(run("unet-w2-d1", "--tile", 64, "--json").output)
    assert said["receptive_field"] == {"width_px": 18, "height_px": 18, "is_global": False}
    assert said["flops"] == sum(group["flops"] for group in said["groups"])


def test_wrong_names_and_tiles_are_refused() -> None:
    unknown = run("nonet")
    assert unknown.exit_code == 1
    assert isinstance(unknown.exception, HistosegError)
    assert run("unet-d4", "--tile", 100).exit_code == 2
