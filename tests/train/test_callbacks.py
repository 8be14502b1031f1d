from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from histoseg_train.callbacks import BestCheckpoint, WarmUpCosine
from histoseg_train.evaluate import Evaluation
from histoseg_train.history import Epoch


def fake_model() -> SimpleNamespace:
    return SimpleNamespace(
        optimizer=SimpleNamespace(learning_rate=1.0), stop_training=False, get_weights=lambda: ["weights"]
    )


def test_the_rate_rises_then_falls_to_zero() -> None:
    schedule, model = WarmUpCosine(peak=0.5, steps=100), fake_model()
    schedule.set_model(model)
    schedule.on_train_begin()
    rates = []
    for step in range(100):
        schedule.on_train_batch_begin(step)
        rates.append(model.optimizer.learning_rate)
    top = rates.index(max(rates))
    assert 5 <= top <= 15
    assert 0.45 < max(rates) <= 0.5
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.001


def test_a_time_limit_ends_the_cosine_early() -> None:
    schedule, model = WarmUpCosine(peak=0.5, steps=10**9, max_seconds=1e-9), fake_model()
    schedule.set_model(model)
    schedule.on_train_begin()
    schedule.on_train_batch_begin(0)
    schedule.on_epoch_end(0)
    assert model.optimizer.learning_rate == pytest.approx(0, abs=1e-6)
    assert model.stop_training


def run_epochs(scores: list[float], *, patience: int) -> tuple[list[Epoch], list[int], bool]:
    kept: list[int] = []
    left = iter(scores)
    checkpoint = BestCheckpoint(
        validate=lambda: Evaluation(value := next(left), {"s": value}),
        keep=lambda epochs: kept.append(epochs[-1].number),
        report=lambda _: None,
        patience=patience,
    )
    model = fake_model()
    checkpoint.set_model(model)
    checkpoint.on_train_begin()
    for epoch in range(len(scores)):
        checkpoint.on_epoch_end(epoch, {"loss": 1.0})
        if model.stop_training:
            break
    return checkpoint.epochs, kept, model.stop_training


def test_every_better_epoch_is_kept() -> None:
    _, kept, _ = run_epochs([0.1, 0.3, 0.2, 0.3, 0.4], patience=9)
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
        keep=lambda _: None,
        report=lambda _: None,
        patience=1,
    )
    model = fake_model()
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(0, {"loss": math.nan})
    assert model.stop_training
    assert checkpoint.best_weights is None
