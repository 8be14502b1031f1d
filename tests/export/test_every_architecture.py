"""Every architecture with every encoder, from one training step to the exported graph.

The plain encoder and MobileNetV2 go through every architecture. The deep encoders, which take half a minute
and more, go through one each and are exported at one size; `HISTOSEG_FULL=1` runs all pairs, at both sizes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from histoseg_export.convert import convert_model
from histoseg_export.describe import Description
from histoseg_export.gates import Gates
from histoseg_export.load import load_model
from histoseg_export.parity import Expected, compare
from histoseg_train.architectures import ARCHITECTURES, build_architecture, parse_architecture
from histoseg_train.architectures.deeplab import CHOICES
from histoseg_train.architectures.encoders import ENCODERS
from histoseg_train.job import FitOptions
from histoseg_train.losses import LossOptions, build_loss
from histoseg_train.optimizers import build_optimizer

CLASSES = ("background", "tissue", "tumour")
STEPS, RATE = 3, 1e-3
COLORS = ("#ffffff", "#00aa00", "#aa0000")
PYRAMIDS = [
    f"{base}-{encoder}-o{stride}-w16"
    for base in ("deeplabv3", "deeplabv3plus")
    for encoder in CHOICES
    for stride in (8, 16)
]
EVERY = [*PYRAMIDS, *(f"unet-{encoder}-w2-d5" for encoder in CHOICES), "segnet-w4-d3", "unetplusplus-w4-d3"]
SLOW = ("resnet50", "resnet101", "xception", "inception_resnet_v2")
# each encoder once, at output strides of both kinds
ENOUGH = (
    "unet-mobilenet_v2-w2-d5",
    "deeplabv3-mobilenet_v2-o8-w16",
    "deeplabv3plus-mobilenet_v2-o16-w16",
    "deeplabv3plus-resnet50-o8-w16",
    "deeplabv3plus-resnet101-o16-w16",
    "deeplabv3plus-xception-o8-w16",
    "deeplabv3plus-inception_resnet_v2-o16-w16",
)
FULL = os.environ.get("HISTOSEG_FULL") == "1"


def pick_names() -> list[str]:
    return [name for name in EVERY if FULL or name in ENOUGH or not uses(name, ENCODERS)]


def uses(name: str, encoders: Iterable[str]) -> bool:
    return not set(encoders).isdisjoint(name.split("-"))


def test_every_architecture_and_encoder_is_among_them() -> None:
    assert {name.partition("-")[0] for name in pick_names()} == set(ARCHITECTURES)
    assert {name.split("-")[1] for name in pick_names()} >= set(CHOICES)


@pytest.mark.parametrize("name", pick_names())
def test_a_network_learns_is_saved_and_exported(name: str, tmp_path: Path) -> None:
    model = train_few_steps(name)
    check_probabilities(model)
    for size, suffix in ((64, "keras"), (96, "h5")):
        tiles, _ = draw_tiles(size, size)
        expected = run(model, tiles)
        assert expected.std(axis=(0, 1, 2)).max() > 0.01, "these probabilities tell nothing"
        path = tmp_path / f"model.{suffix}"
        model.save(path)
        again = load_model(path).model
        np.testing.assert_array_equal(run(again, tiles), expected, f"as loaded from {path.name}")
        if FULL or suffix == "keras" or not uses(name, SLOW):
            check_export(again, tiles, expected)


def train_few_steps(name: str) -> Any:
    """Return a network that tells bright from dark a little, its statistics those of its tiles."""
    import keras

    keras.utils.set_random_seed(0)
    model = build_architecture((None, None, 3), len(CLASSES), options=parse_architecture(name))
    made_up = [layer.name for layer in model.layers if is_made_up(layer)]
    assert not made_up, "Keras counts these names, so they change from model to model"
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    optimizer = build_optimizer(FitOptions(optimizer="adam", learning_rate=RATE))
    model.compile(optimizer, build_loss(LossOptions()), run_eagerly=True)
    tiles, labels = draw_tiles(64, 64)
    losses = [float(model.train_on_batch(normalize(tiles), labels)) for _ in range(STEPS)]
    assert losses[-1] < losses[0], f"the loss does not fall: {losses}"
    model(normalize(tiles), training=True)  # statistics of these weights, not of those before the last step
    return model


def check_probabilities(model: Any) -> None:
    tiles, _ = draw_tiles(96, 64)
    probabilities = run(model, tiles)
    assert probabilities.shape == (*tiles.shape[:3], len(CLASSES))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    assert probabilities.min() >= 0


def check_export(model: Any, tiles: Any, expected: Any) -> None:
    size = tiles.shape[1]
    description = Description("any", CLASSES, COLORS, 0.5, "unit", (size, size), "softmax", len(CLASSES))
    graph = convert_model(model, description).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    parity = compare(
        lambda pixels: session.run(None, {"image": pixels})[0],
        Expected("Keras", "blocks", CLASSES, tiles, None, expected),
        Gates().pick("fp32"),
    )
    assert parity.passed, f"at {size} px: {parity.explain_failures()}"


def draw_tiles(height: int, width: int) -> tuple[Any, Any]:
    """Return tiles of a few bright, middle and dark blocks with noise, and which of these each pixel is."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, height // 32, width // 32)).repeat(32, axis=1).repeat(32, axis=2)
    noise = rng.integers(0, 40, (*labels.shape, 3))
    return (labels[..., None] * 100 + noise).astype(np.uint8), labels


def normalize(tiles: Any) -> Any:
    return tiles.astype(np.float32) / 255


def run(model: Any, tiles: Any) -> Any:
    return np.asarray(model(normalize(tiles), training=False))


def is_made_up(layer: Any) -> bool:
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
    return re.fullmatch(rf"{kind}(_\d+)?", layer.name) is not None
