from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from histoseg.score import count_confusion
from histoseg_train.metrics import dice_per_class, foreground_dice, weighted_dice

LABELS = arrays(np.uint8, (6, 5), elements=st.integers(0, 2))


@given(truth=LABELS, predicted=LABELS)
def test_counts_add_up_over_parts(truth: np.ndarray, predicted: np.ndarray) -> None:
    whole = count_confusion(truth, predicted, classes=3)
    parts = sum(count_confusion(truth[i], predicted[i], classes=3) for i in range(len(truth)))
    np.testing.assert_array_equal(whole, parts)
    assert whole.sum() == truth.size


@given(truth=LABELS, predicted=LABELS)
def test_dice_is_the_textbook_formula(truth: np.ndarray, predicted: np.ndarray) -> None:
    dice = dice_per_class(count_confusion(truth, predicted, classes=3))
    for c in range(3):
        total = np.sum(truth == c) + np.sum(predicted == c)
        expected = 2 * np.sum((truth == c) & (predicted == c)) / total if total else math.nan
        np.testing.assert_equal(dice[c], expected)


@given(truth=LABELS)
def test_perfect_prediction_has_dice_one(truth: np.ndarray) -> None:
    dice = dice_per_class(count_confusion(truth, truth, classes=3))
    assert set(dice[~np.isnan(dice)]) == {1.0}


def test_absent_class_does_not_count() -> None:
    truth = np.array([0, 1, 1, 0], np.uint8)
    counts = count_confusion(truth, truth, classes=3)
    assert math.isnan(dice_per_class(counts)[2])
    assert foreground_dice(counts) == 1.0


def test_no_foreground_at_all_is_nan() -> None:
    nothing = np.zeros(4, np.uint8)
    assert math.isnan(foreground_dice(count_confusion(nothing, nothing, classes=2)))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="expected the truth's"):
        count_confusion(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), classes=2)


def test_weighted_dice_leaves_out_nan() -> None:
    assert weighted_dice({"a": 0.5, "b": 1.0, "c": math.nan}, {"a": 3, "b": 1, "c": 9}) == 0.625
    assert math.isnan(weighted_dice({"a": math.nan}, {"a": 1}))
