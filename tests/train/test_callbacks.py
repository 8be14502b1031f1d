from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg_train.callbacks import BestCheckpoint, LearningRate
from histoseg_train.history import Epoch
from histoseg_train.job import FitOptions
from histoseg_train.schedules import Monitor, plateau_share
from histoseg_train.validation import Validation


def fake_model() -> SimpleNamespace:
    return SimpleNamespace(
        optimizer=SimpleNamespace(learning_rate=1.0), stop_training=False, get_weights=lambda: ["weights"]
    )


def make_epoch(number: int, score: float) -> Epoch:
    return Epoch(number, 0.0, 0.1, 1.0, -score, score, score, {}, is_best=True)


def follow(options: FitOptions, *, steps: int, scores: list[float] | None = None) -> list[float]:
    """Return the rate of every step; after epoch i the score was `scores[i]`."""
    epochs: list[Epoch] = []
    schedule, model = LearningRate(options, steps=steps, epochs=epochs), fake_model()
    schedule.set_model(model)
    schedule.on_train_begin()
    rates = []
    for epoch in range(options.epochs):
        schedule.on_epoch_begin(epoch)
        for step in range(steps):
            schedule.on_train_batch_begin(step)
            rates.append(model.optimizer.learning_rate)
        epochs.append(make_epoch(epoch + 1, scores[epoch] if scores else 0.0))
    return rates


def test_the_rate_rises_then_falls_to_zero() -> None:
    rates = follow(FitOptions(epochs=4, learning_rate=0.5), steps=25)
    top = rates.index(max(rates))
    assert 5 <= top <= 15
    assert 0.45 < max(rates) <= 0.5
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.001


def test_a_constant_rate_rises_and_stays() -> None:
    rates = follow(FitOptions(epochs=4, learning_rate=0.5, schedule="constant"), steps=25)
    assert rates[:10] == sorted(rates[:10])
    assert set(rates[10:]) == {0.5}


def test_a_plateau_lowers_the_rate() -> None:
    options = FitOptions(
        epochs=6,
        learning_rate=0.5,
        schedule="plateau",
        plateau_patience=2,
        plateau_factor=0.1,
        monitor="loss",
    )
    rates = follow(options, steps=1, scores=[0.1, 0.2, 0.2, 0.2, 0.3, 0.3])
    assert rates == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.05, 0.05])


@given(
    scores=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    patience=st.integers(1, 4),
    factor=st.sampled_from([0.1, 0.5]),
)
def test_a_plateau_is_what_keras_says_it_is(scores: list[int], patience: int, factor: float) -> None:
    oracle = keras.callbacks.ReduceLROnPlateau("score", factor=factor, patience=patience, mode="max")
    model = fake_model()
    oracle.set_model(model)
    oracle.on_train_begin()
    for number, score in enumerate(scores):
        oracle.on_epoch_end(number, {"score": float(score)})
    share = plateau_share(scores, patience=patience, factor=factor)
    assert share == pytest.approx(model.optimizer.learning_rate)


def test_a_time_limit_ends_the_cosine_early() -> None:
    options = FitOptions(epochs=10**6, learning_rate=0.5, max_minutes=1e-9)
    schedule, model = LearningRate(options, steps=1000, epochs=[]), fake_model()
    schedule.set_model(model)
    schedule.on_train_begin()
    schedule.on_train_batch_begin(0)
    schedule.on_epoch_end(0)
    assert model.optimizer.learning_rate == pytest.approx(0, abs=1e-6)
    assert model.stop_training


def test_a_resumed_run_has_spent_its_time_already() -> None:
    before = replace(make_epoch(1, 0.5), seconds=61.0)
    assert LearningRate(FitOptions(max_minutes=1), steps=1, epochs=[before]).is_time_up
    assert not LearningRate(FitOptions(max_minutes=2), steps=1, epochs=[before]).is_time_up


def validation(monitor: Monitor, score: float) -> Validation:
    values = {"loss": 1.0, "dice": 0.5, "miou": 0.5, monitor: -score if monitor == "loss" else score}
    return Validation(**values, dice_per_source={})


def run_epochs(
    scores: list[float], *, patience: int, monitor: Monitor = "dice"
) -> tuple[list[Epoch], list[int], bool]:
    kept: list[int] = []
    left = iter(scores)
    checkpoint = BestCheckpoint(
        validate=lambda: validation(monitor, next(left)),
        keep=lambda: kept.append(checkpoint.epochs[-1].number),
        report=lambda _: None,
        patience=patience,
        monitor=monitor,
    )
    model = fake_model()
    checkpoint.set_model(model)
    checkpoint.on_train_begin()
    for epoch in range(len(scores)):
        checkpoint.on_epoch_end(epoch, {"loss": 1.0})
        if model.stop_training:
            break
    return checkpoint.epochs, kept, model.stop_training


@pytest.mark.parametrize("monitor", get_args(Monitor))
def test_every_better_epoch_is_kept(monitor: Monitor) -> None:
    _, kept, _ = run_epochs([0.1, 0.3, 0.2, 0.3, 0.4], patience=9, monitor=monitor)
    assert kept == [1, 2, 5]


def test_patience_counts_from_the_best_epoch() -> None:
    epochs, kept, stopped = run_epochs([0.5, 0.4, 0.6, 0.1, 0.2, 0.9], patience=2)
    assert stopped
    assert len(epochs) == 5
    assert kept == [1, 3]


def test_any_number_beats_nan() -> None:
    _, kept, _ = run_epochs([math.nan, 0.1, math.nan, 0.05], patience=9)
    assert kept == [1, 2]


def test_a_loss_that_is_no_number_stops_training() -> None:
    checkpoint = BestCheckpoint(
        validate=lambda: pytest.fail("a broken model needs no validation"),
        keep=lambda: None,
        report=lambda _: None,
        patience=1,
    )
    model = fake_model()
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(0, {"loss": math.nan})
    assert model.stop_training
    assert not checkpoint.best_weights
