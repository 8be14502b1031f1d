"""Metadata, flags and the last layer make the card; what is said nowhere is asked for by its flag."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest

from histoseg.card import Tiling
from histoseg.errors import ModelError
from histoseg_export.describe import ExportOptions, build_card, describe_model, detect_activation
from histoseg_export.load import load_model
from histoseg_train.metadata import KerasMetadata

METADATA = KerasMetadata(
    architecture="unet-w3-d2",
    class_names=("background", "nucleus"),
    class_colors=("#ffffff", "#1b7f3b"),
    spacing_um_px=0.5,
    normalization="imagenet",
    patch_size_pixels=(96, 64),
    training={"dice": 0.8},
)


@pytest.fixture(scope="module")
def model(keras_files):
    return load_model(keras_files["softmax"]).model


def test_metadata_need_no_flags(model):
    found = describe_model(model, METADATA, ExportOptions())
    assert found.architecture == "unet-w3-d2"
    assert found.class_names == ("background", "nucleus")
    assert (found.spacing_um_px, found.normalization, found.tile) == (0.5, "imagenet", (96, 64))
    assert found.training == {"dice": 0.8}
    assert found.notes == ()


def test_flags_win_and_say_so(model):
    options = ExportOptions(tile=128, spacing_um_px=0.25, normalization="unit")
    found = describe_model(model, METADATA, options)
    assert (found.spacing_um_px, found.normalization, found.tile) == (0.25, "unit", (128, 128))
    assert len(found.notes) == 2


def test_what_is_missing_is_named(model):
    with pytest.raises(ModelError, match="--spacing"):
        describe_model(model, None, ExportOptions(tile=64))
    with pytest.raises(ModelError, match="--tile"):
        describe_model(model, None, ExportOptions(spacing_um_px=0.5))
    wrong = ExportOptions(tile=64, spacing_um_px=0.5, class_names=("a",), class_colors=("#000000",))
    with pytest.raises(ModelError, match=r"expected 2 names.*--classes"):
        describe_model(model, None, wrong)


def test_a_threshold_is_for_two_classes(model, keras_files):
    found = describe_model(model, METADATA, ExportOptions(threshold=0.4))
    card = build_card(
        found, tiling=Tiling(stride_multiple=16, halo_px=8, overlap_px=16), parity={}, provenance={}
    )
    assert card.output.threshold == 0.4
    three = keras.Sequential([keras.Input((64, 64, 3)), keras.layers.Conv2D(3, 1, activation="softmax")])
    with pytest.raises(ModelError, match="--threshold is given for 3 classes"):
        describe_model(three, None, ExportOptions(spacing_um_px=0.5, threshold=0.4))


def test_assumptions_are_noted(model):
    found = describe_model(model, None, ExportOptions(tile=64, spacing_um_px=0.5))
    assert found.normalization == "unit"
    assert any("--normalize" in note for note in found.notes)
    assert any("--classes" in note for note in found.notes)


def test_wrong_number_of_classes_in_the_file(model):
    three = replace(METADATA, class_names=("a", "b", "c"), class_colors=("#000000", "#808080", "#ffffff"))
    with pytest.raises(ModelError, match="3 classes"):
        describe_model(model, three, ExportOptions())


@pytest.mark.parametrize(
    ("name", "activation"),
    [("softmax", "softmax"), ("logits", "logits"), ("sigmoid", "sigmoid"), ("sequential", "softmax")],
)
def test_activation_is_detected(name, activation, keras_files):
    assert detect_activation(load_model(keras_files[name]).model) == activation


def test_activation_is_found_behind_resizing_and_in_submodels(keras_files):
    import keras
    from keras import layers

    image = keras.Input((32, 32, 3))
    inner = keras.Model(image, layers.Conv2D(2, 1, strides=2, activation="softmax")(image))
    outer = keras.Input((32, 32, 3))
    assert detect_activation(keras.Model(outer, layers.UpSampling2D()(inner(outer)))) == "softmax"


def test_unknown_activation_asks_for_the_flag(keras_files):
    import keras

    image = keras.Input((32, 32, 3))
    model = keras.Model(image, keras.layers.Conv2D(2, 1, activation="relu", name="last")(image))
    with pytest.raises(ModelError, match=r"'last'.*relu.*--activation"):
        describe_model(model, None, ExportOptions(spacing_um_px=0.5))


def test_one_rectified_channel_is_cut_off_at_one(keras_files):
    import keras

    image = keras.Input((32, 32, 3))
    model = keras.Model(image, keras.layers.Conv2D(1, 1, activation="relu")(image))
    found = describe_model(model, None, ExportOptions(spacing_um_px=0.5))
    assert (found.activation, found.clip) == ("sigmoid", True)
    assert any("cut off at 1" in note for note in found.notes)
    said = describe_model(model, None, ExportOptions(spacing_um_px=0.5, activation="logits"))
    assert (said.activation, said.clip) == ("logits", False)


def first_steps():
    """Return first layers, and whether they take images of 0 to 255."""
    from keras import layers, ops

    return {
        "scale": (layers.Rescaling(1 / 255), True),
        "shift": (layers.Normalization(mean=[120.0, 115.0, 110.0], variance=[1.0, 1.0, 1.0]), True),
        "unit mean": (layers.Normalization(mean=[0.5, 0.5, 0.4], variance=[0.1, 0.1, 0.1]), False),
        "double": (layers.Rescaling(2.0, offset=-1.0), False),
        "fresh norm": (layers.BatchNormalization(), False),
        "divide": (lambda x: x / 255.0, True),
        "subtract": (lambda x: x - ops.convert_to_tensor([103.9, 116.8, 123.7]), True),
        "pad": (lambda x: layers.Rescaling(1 / 127.5)(layers.ZeroPadding2D(1)(x))[:, 1:-1, 1:-1], True),
        "convolution": (layers.Conv2D(3, 3, padding="same"), False),
    }


FIRST = ("scale", "shift", "unit mean", "double", "fresh norm", "divide", "subtract", "pad", "convolution")


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("size", [None, 32])
def test_networks_that_scale_their_images_get_them_as_they_are(name, size, keras_files):
    import keras

    step, own = first_steps()[name]
    image = keras.Input((size, size, 3))
    model = keras.Model(image, keras.layers.Conv2D(2, 1)(step(image)))
    found = describe_model(model, None, ExportOptions(spacing_um_px=0.5, tile=32))
    assert found.normalization == ("none" if own else "unit")
    assert any("--normalize" in note for note in found.notes)
    said = describe_model(model, None, ExportOptions(spacing_um_px=0.5, tile=32, normalization="imagenet"))
    assert said.normalization == "imagenet"


def test_a_batch_norm_that_saw_bytes_says_so(keras_files):
    import keras

    image = keras.Input((32, 32, 3))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(image, keras.layers.Conv2D(2, 1)(norm(image)))
    norm.set_weights(np.array([[1, 1, 1], [0, 0, 0], [180, 140, 170], [900, 900, 900]]))
    found = describe_model(model, None, ExportOptions(spacing_um_px=0.5))
    assert found.normalization == "none"
    assert any("takes off a mean of 163" in note for note in found.notes)


def test_networks_of_bytes_take_no_normalisation(keras_files):
    import keras

    image = keras.Input((32, 32, 3), dtype="uint8")
    model = keras.Model(image, keras.layers.Conv2D(2, 1)(keras.layers.Rescaling(1 / 255)(image)))
    assert describe_model(model, None, ExportOptions(spacing_um_px=0.5)).normalization == "none"
    with pytest.raises(ModelError, match="takes uint8 pixels, expected --normalize none"):
        describe_model(model, None, ExportOptions(spacing_um_px=0.5, normalization="unit"))


@pytest.mark.parametrize("space", ["device", "sRGB"])
def test_colour_space_reaches_the_card(space, model):
    from histoseg.card import Tiling
    from histoseg_export.describe import build_card

    options = ExportOptions(tile=64, spacing_um_px=0.5, color_space=space)
    card = build_card(describe_model(model, None, options), tiling=Tiling(4, 0, 0), parity={}, provenance={})
    assert card.input.color_space == space
