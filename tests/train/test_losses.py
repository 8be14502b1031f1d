from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg_train.losses import cross_entropy_dice_loss, soft_dice_loss


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[labels]


@pytest.mark.parametrize("classes", [2, 3])
def test_perfect_prediction_has_no_loss(classes: int) -> None:
    labels = np.random.default_rng(0).integers(0, classes, (2, 8, 8))
    assert float(cross_entropy_dice_loss(labels, one_hot(labels, classes))) == pytest.approx(0, abs=1e-5)


def test_absent_class_predicted_absent_has_no_loss() -> None:
    labels = np.zeros((1, 8, 8), np.int64)
    assert float(cross_entropy_dice_loss(labels, one_hot(labels, 2))) == pytest.approx(0, abs=1e-5)


def test_wrong_everywhere_has_dice_loss_near_one() -> None:
    labels = np.zeros((1, 32, 32), np.int64)
    labels[:, :16] = 1
    assert float(soft_dice_loss(labels, one_hot(1 - labels, 2))) == pytest.approx(1, abs=0.01)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), better=st.floats(0.05, 0.9))
def test_moving_towards_the_truth_lowers_the_loss(seed: int, better: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (2, 6, 6))
    guess = rng.dirichlet(np.ones(3), (2, 6, 6)).astype(np.float32)
    closer = ((1 - better) * guess + better * one_hot(labels, 3)).astype(np.float32)
    assert float(cross_entropy_dice_loss(labels, closer)) < float(cross_entropy_dice_loss(labels, guess))
