from __future__ import annotations

import csv
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg.equalize import Equalization, equalize
from histoseg.errors import DataError
from histoseg_train.architectures import UnetOptions, build_unet
from histoseg_train.callbacks import find_best
from histoseg_train.dataset import release_held_out
from histoseg_train.fit import Listener, fit_model
from histoseg_train.history import Epoch
from histoseg_train.job import FitOptions, Job, PatchOptions, open_store
from histoseg_train.metadata import require_metadata
from histoseg_train.modelfile import load_model
from histoseg_train.network import clone_half
from histoseg_train.validation import predict_probabilities, validate_network

MakeFolder = Callable[..., Path]


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Job:
    return make_job(
        patches=PatchOptions(size=32, batch=2, steps=3),
        fit=FitOptions(epochs=2, learning_rate=0.01, seed=3),
        command="histoseg-train fit data",
    )


def weights(path: Path) -> list[np.ndarray]:
    return load_model(path).get_weights()


def test_fit_writes_model_history_and_curve(job: Job, tmp_path: Path) -> None:
    epochs: list[Epoch] = []
    best = fit_model(job, tmp_path / "m.keras", listener=Listener(epochs.append))
    written = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert written == {"m.keras", "m.history.csv", "m.learning_curve.png", "m.preview.png"}
    rows = list(csv.DictReader((tmp_path / "m.history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) == pytest.approx(epochs[1].loss, abs=1e-4)
    assert "val_dice_data" in rows[0]
    assert cv2.imread(str(tmp_path / "m.learning_curve.png")).shape[2] == 3
    assert not keras.saving.load_model(tmp_path / "m.keras").compiled, "no loss or optimizer travels along"
    metadata = require_metadata(tmp_path / "m.keras")
    assert metadata.class_names == ("background", "nucleus")
    assert metadata.patch_size_pixels == (32, 32)
    assert metadata.architecture == "unet-w2-d1"
    assert metadata.training["best_epoch"] == best.number
    assert metadata.training["held_out"] == {"data": [job.held_out.items[0].stem]}
    assert metadata.training["data"][0]["images_trained"] == 3
    assert metadata.training["command"] == "histoseg-train fit data"


def test_with_nothing_held_out_the_last_epoch_is_stored(job: Job, tmp_path: Path) -> None:
    dataset = release_held_out(job.dataset)
    training, held_out = open_store(dataset.training, job.target), open_store(dataset.held_out, job.target)
    # the rate of the last epochs ruins nothing: any of them may have the lowest loss
    fit = replace(job.fit, epochs=4, patience=1)
    whole = replace(job, dataset=dataset, training=training, held_out=held_out, fit=fit)
    seen: list[list[np.ndarray]] = []

    def keep(_epoch: Epoch) -> None:
        seen.append(weights(tmp_path / "m.keras"))

    best = fit_model(whole, tmp_path / "m.keras", listener=Listener(keep))
    assert best.number == 4, "no early stopping"
    for a, b in zip(weights(tmp_path / "m.keras"), seen[-1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(seen[-1][0], seen[-2][0])
    metadata = require_metadata(tmp_path / "m.keras").training
    assert metadata["all_images"] is True
    assert metadata["held_out"] == {}
    assert metadata["dice"] == {"overall": None, "per_source": {}}
    assert metadata["data"][0]["images_trained"] == 4


def test_the_best_epoch_is_what_is_stored(job: Job, tmp_path: Path) -> None:
    # a rate this high ruins the model in some epoch, so that the best is not the last
    wild = replace(job, fit=replace(job.fit, epochs=5, learning_rate=0.5))
    epochs: list[Epoch] = []
    best = fit_model(wild, tmp_path / "m.keras", listener=Listener(epochs.append))
    assert best.val_dice == max(epoch.val_dice for epoch in epochs)
    result = validate_network(load_model(tmp_path / "m.keras"), job)
    assert result.dice == pytest.approx(best.val_dice, abs=1e-6)
    assert require_metadata(tmp_path / "m.keras").training["dice"]["overall"] == round(best.val_dice, 4)


def test_the_same_seed_gives_the_same_weights_in_both_formats(job: Job, tmp_path: Path) -> None:
    fit_model(job, tmp_path / "a.keras")
    fit_model(job, tmp_path / "b.h5")
    for one, other in zip(weights(tmp_path / "a.keras"), weights(tmp_path / "b.h5"), strict=True):
        np.testing.assert_array_equal(one, other)
    first, second = require_metadata(tmp_path / "a.keras"), require_metadata(tmp_path / "b.h5")
    assert replace(first, training={}) == replace(second, training={})
    assert (tmp_path / "a.history.csv").is_file()
    assert (tmp_path / "b.h5.history.csv").is_file(), "beside a b.keras it would be taken for that one's"


def test_training_learns(job: Job, tmp_path: Path) -> None:
    longer = replace(
        job,
        network=UnetOptions(width=4, depth=2),
        patches=replace(job.patches, steps=15),
        fit=replace(job.fit, epochs=4, learning_rate=0.02),
    )
    assert fit_model(longer, tmp_path / "m.keras").val_dice > 0.8


def test_patience_and_time_limit_stop_training(job: Job, tmp_path: Path) -> None:
    frozen = replace(
        job,
        patches=replace(job.patches, steps=1),
        fit=replace(job.fit, epochs=9, learning_rate=1e-12, patience=1),
    )
    epochs: list[Epoch] = []
    fit_model(frozen, tmp_path / "m.keras", listener=Listener(epochs.append))
    assert len(epochs) < 9
    epochs.clear()
    hurried = replace(job, fit=replace(job.fit, epochs=9, max_minutes=1e-4))
    fit_model(hurried, tmp_path / "m.keras", listener=Listener(epochs.append))
    assert len(epochs) == 1


def test_an_infinite_loss_is_an_error(job: Job, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--learning-rate"):
        fit_model(replace(job, fit=replace(job.fit, learning_rate=float("inf"))), tmp_path / "m.keras")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


@pytest.mark.parametrize("kind", ["half", "sgd", "adam", "plateau"])
def test_every_way_to_train_saves_a_plain_model(job: Job, tmp_path: Path, kind: str) -> None:
    options = {
        "half": {"mixed_precision": True, "learning_rate": 0.02},
        "sgd": {"optimizer": "sgd", "schedule": "constant", "learning_rate": 0.1, "monitor": "miou"},
        "adam": {"optimizer": "adam", "monitor": "loss"},
        "plateau": {"schedule": "plateau", "plateau_patience": 1},
    }
    fit = replace(job.fit, epochs=3, **options[kind])
    epochs: list[Epoch] = []
    patches = replace(job.patches, steps=12)
    fit_model(replace(job, fit=fit, patches=patches), tmp_path / "m.keras", listener=Listener(epochs.append))
    assert epochs[-1].loss < epochs[0].loss
    model = load_model(tmp_path / "m.keras")
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert {weight.dtype for weight in model.weights} == {"float32"}
    result = validate_network(model, job)
    best = find_best(epochs)
    assert result.dice == pytest.approx(best.val_dice)
    assert (result.loss, result.miou) == pytest.approx((best.val_loss, best.val_miou), rel=1e-5)


@settings(max_examples=10)
@given(seed=st.integers(0, 99))
def test_half_precision_computes_nearly_the_same(seed: int) -> None:
    keras.utils.set_random_seed(seed)
    model = build_unet((32, 32, 3), 3, options=UnetOptions(width=4, depth=2))
    pixels = np.random.default_rng(seed).random((2, 32, 32, 3), np.float32)
    half = clone_half(model)
    assert {str(weight.dtype) for weight in half.weights} == {"float32"}
    computed = keras.ops.convert_to_numpy(half(pixels))
    assert computed.dtype == np.float32
    whole = keras.ops.convert_to_numpy(model(pixels))
    assert 0 < np.abs(computed - whole).max() < 0.02


def test_validation_is_the_mean_over_sources_of_pooled_counts(job: Job) -> None:
    model = build_unet((None, None, 3), 2, options=job.network)
    result = validate_network(model, job)
    truth, guess = [], []
    for index in range(len(job.held_out)):
        sample = job.held_out[index]
        truth.append(sample.labels.ravel())
        guess.append(np.argmax(predict_probabilities(model, sample.rgb, job), axis=-1).ravel())
    t, g = np.concatenate(truth), np.concatenate(guess)
    ious = [np.sum((t == c) & (g == c)) / np.sum((t == c) | (g == c)) for c in (0, 1)]
    assert result.miou == pytest.approx(np.mean(ious))
    assert result.dice == pytest.approx(2 * np.sum(t & g) / (t.sum() + g.sum()))


@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (3, 5)])
def test_predictions_have_the_size_of_the_image(job: Job, shape: tuple[int, int]) -> None:
    three = replace(
        job,
        target=replace(job.target, normalization="imagenet"),
        network=UnetOptions(width=2, depth=2),
    )
    model = build_unet((None, None, 3), 3, options=three.network)
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    probabilities = predict_probabilities(model, rgb, three)
    assert probabilities.shape == (*shape, 3)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)


def test_a_killed_run_leaves_its_best_model(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder, output = make_folder(4), tmp_path / "m.keras"
    options = "--arch=unet-w2-d1 --patch=16 --batch=1 --steps=2 --epochs=99999 --patience=99999"
    command = [
        sys.executable,
        "-m",
        "histoseg_train",
        "fit",
        str(folder),
        "-o",
        str(output),
        *shlex.split(options),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith("epoch   2") for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert require_metadata(output).training["epochs"] >= 1
    assert not list(tmp_path.glob(".*part*"))


def test_smoothing_is_a_layer_that_training_leaves_alone(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "smooth.keras"
    fit_model(replace(job, smooth_um=0.75), output)
    model = load_model(output)
    kernel = model.get_layer("smoothing").get_weights()[0]
    assert kernel.shape == (11, 11, 3, 1)  # three times 1.5 px to each side
    np.testing.assert_allclose(kernel.sum(axis=(0, 1)), 1, rtol=1e-6)
    pixels = np.random.default_rng(0).random((1, 48, 48, 3)).astype(np.float32)
    smooth = keras.Model(model.inputs, model.get_layer("smoothing").output)(pixels)
    expected = cv2.GaussianBlur(pixels[0], (11, 11), 1.5, borderType=cv2.BORDER_CONSTANT)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(smooth)[0], expected, atol=1e-6)
    assert require_metadata(output).training["smooth_um"] == 0.75


def test_equalisation_changes_what_is_learned_from_and_travels_in_the_file(job: Job, tmp_path: Path) -> None:
    target = replace(job.target, equalization=Equalization(3.0, 32))
    training, held_out = (open_store(store.items, target) for store in (job.training, job.held_out))
    plain = job.training[0].rgb
    np.testing.assert_array_equal(training[0].rgb, equalize(plain, Equalization(3.0, 32)))
    assert (training[0].rgb != plain).any()
    output = tmp_path / "equal.h5"
    fit_model(replace(job, target=target, training=training, held_out=held_out), output)
    assert require_metadata(output).equalization == Equalization(3.0, 32)
