from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg.errors import OptionError
from histoseg_train.losses import (
    LOSSES,
    LossOptions,
    build_loss,
    cross_entropy_loss,
    focal_loss,
    parse_loss,
    soft_dice_loss,
    tversky_loss,
)

SHAPE = (2, 6, 6)
WEIGHTS = (1.0, 4.0, 0.5)
SEEDS = st.integers(0, 9999)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[labels]


def draw(seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), SHAPE).astype(np.float32)
    return rng.integers(0, classes, SHAPE), probabilities


def pick_true(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    true = np.take_along_axis(probabilities.astype(np.float64), labels[..., None], -1)[..., 0]
    return np.clip(true, 1e-7, 1 - 1e-7)


def overlap(labels: np.ndarray, probabilities: np.ndarray, alpha: float, beta: float, smooth: float) -> float:
    index = []
    for c in range(1, probabilities.shape[-1]):
        p, g = probabilities[..., c].astype(np.float64), (labels == c).astype(np.float64)
        hits, wrong, missed = (p * g).sum(), (p * (1 - g)).sum(), ((1 - p) * g).sum()
        index.append((hits + smooth) / (hits + alpha * wrong + beta * missed + smooth))
    return 1 - float(np.mean(index))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_perfect_prediction_has_no_loss(name: str, classes: int) -> None:
    labels = np.random.default_rng(0).integers(0, classes, (2, 8, 8))
    assert float(LOSSES[name](labels, one_hot(labels, classes))) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_absent_class_predicted_absent_has_no_loss(name: str) -> None:
    labels = np.zeros((1, 8, 8), np.int64)
    assert float(LOSSES[name](labels, one_hot(labels, 2))) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", [soft_dice_loss, tversky_loss])
def test_wrong_everywhere_has_overlap_loss_near_one(loss: Callable[..., float]) -> None:
    labels = np.zeros((1, 32, 32), np.int64)
    labels[:, :16] = 1
    assert float(loss(labels, one_hot(1 - labels, 2))) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=20)
@given(seed=SEEDS, better=st.floats(0.05, 0.9))
def test_moving_towards_the_truth_lowers_the_loss(name: str, seed: int, better: float) -> None:
    labels, guess = draw(seed)
    closer = ((1 - better) * guess + better * one_hot(labels, 3)).astype(np.float32)
    assert float(LOSSES[name](labels, closer)) < float(LOSSES[name](labels, guess))


@settings(max_examples=25)
@given(seed=SEEDS)
def test_pixel_losses_are_their_formulas(seed: int) -> None:
    labels, guess = draw(seed)
    p = pick_true(labels, guess)
    assert float(cross_entropy_loss(labels, guess)) == pytest.approx(np.mean(-np.log(p)), rel=1e-4)
    assert float(focal_loss(labels, guess)) == pytest.approx(np.mean(-((1 - p) ** 2) * np.log(p)), rel=1e-4)


@settings(max_examples=25)
@given(seed=SEEDS)
def test_class_weights_weigh_the_mean(seed: int) -> None:
    labels, guess = draw(seed)
    entropy, weights = -np.log(pick_true(labels, guess)), np.array(WEIGHTS)[labels]
    expected = np.average(entropy, weights=weights)
    assert float(cross_entropy_loss(labels, guess, class_weights=WEIGHTS)) == pytest.approx(
        expected, rel=1e-4
    )
    same = float(focal_loss(labels, guess, class_weights=(7.0, 7.0, 7.0)))
    assert same == pytest.approx(float(focal_loss(labels, guess)), rel=1e-5)


@settings(max_examples=25)
@given(seed=SEEDS)
def test_overlap_losses_are_their_formulas(seed: int) -> None:
    labels, guess = draw(seed)
    assert float(tversky_loss(labels, guess)) == pytest.approx(
        overlap(labels, guess, 0.3, 0.7, 0.5), rel=1e-4
    )
    p, g = guess[..., 1:].astype(np.float64), one_hot(labels, 3)[..., 1:]
    dice = (2 * (p * g).sum((0, 1, 2)) + 1) / (p.sum((0, 1, 2)) + g.sum((0, 1, 2)) + 1)
    assert float(soft_dice_loss(labels, guess)) == pytest.approx(1 - dice.mean(), rel=1e-4)


@settings(max_examples=20)
@given(
    seed=SEEDS,
    terms=st.dictionaries(
        st.sampled_from(sorted(LOSSES)), st.floats(0.1, 5).map(lambda w: round(w, 2)), min_size=1
    ),
)
def test_a_sum_is_the_sum_of_its_terms(seed: int, terms: dict[str, float]) -> None:
    labels, guess = draw(seed)
    total = build_loss(LossOptions(parse_loss("+".join(f"{w}*{name}" for name, w in terms.items()))))
    expected = sum(weight * float(LOSSES[name](labels, guess)) for name, weight in terms.items())
    assert float(total(labels, guess)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=10)
@given(seed=SEEDS)
def test_soft_labels_of_one_class_alone_are_its_index(
    name: str, weights: tuple[float, ...], seed: int
) -> None:
    labels, guess = draw(seed)
    loss = build_loss(LossOptions(((name, 1.0),), weights))
    assert float(loss(one_hot(labels, 3), guess)) == pytest.approx(float(loss(labels, guess)), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=20)
@given(seed=SEEDS, near=st.floats(0.05, 0.9))
def test_moving_towards_the_soft_labels_lowers_the_loss(name: str, seed: int, near: float) -> None:
    (_, soft), (_, guess) = draw(seed), draw(seed + 1)
    closer = ((1 - near) * guess + near * soft).astype(np.float32)
    best, better, worse = (float(LOSSES[name](soft, p)) for p in (soft, closer, guess))
    assert best < better < worse


@settings(max_examples=20)
@given(seed=SEEDS)
def test_class_weights_weigh_soft_labels(seed: int) -> None:
    (_, soft), (_, guess) = draw(seed), draw(seed + 1)
    weighted = soft.astype(np.float64) * WEIGHTS
    expected = (weighted * -np.log(guess)).sum() / weighted.sum()
    assert float(cross_entropy_loss(soft, guess, class_weights=WEIGHTS)) == pytest.approx(expected, rel=1e-3)


def test_sixteen_bits_are_summed_in_thirty_two() -> None:
    labels = np.zeros((4, 256, 256), np.int64)  # more pixels than float16 can count
    guess = np.full((4, 256, 256, 2), 0.5, np.float16)
    plain = float(build_loss(LossOptions())(labels, guess.astype(np.float32)))
    assert float(build_loss(LossOptions())(labels, guess)) == pytest.approx(plain, rel=1e-6)


def test_what_a_loss_may_be_called() -> None:
    assert parse_loss("ce+dice") == LossOptions().terms
    assert parse_loss(" ce + 0.5*focal") == (("ce", 1.0), ("focal", 0.5))


@pytest.mark.parametrize(
    "text", ["", "ce+", "mse", "0*ce", "-1*ce", "nan*ce", "inf*ce", "x*ce", "ce+dice+ce", "ce*2"]
)
def test_other_losses_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="--loss is"):
        parse_loss(text)
