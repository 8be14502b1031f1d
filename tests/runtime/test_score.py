from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.blend import Band
from histoseg.score import Confusion, ThresholdSweep, TruthScore, count_confusion, score_confusion

CLASSES = 4
NAMES = ("background", "stroma", "tumour", "necrosis")
labels = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, CLASSES - 1)
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    truth = draw(labels)
    return truth, draw(
        hnp.arrays(np.uint8, truth.shape, elements=st.integers(0, draw(st.integers(0, CLASSES - 1))))
    )


def slow_scores(truth: np.ndarray, prediction: np.ndarray, index: int) -> dict[str, float | None]:
    """Count one class pixel by pixel."""
    tp = fp = fn = tn = 0
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        tp += t == p == index
        fp += p == index != t
        fn += t == index != p
        tn += index not in (t, p)

    def ratio(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return {
        "dice": ratio(2 * tp, 2 * tp + fp + fn),
        "iou": ratio(tp, tp + fp + fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "accuracy": ratio(tp + tn, tp + tn + fp + fn) if tp + fp + fn else None,
    }


@given(pairs())
def test_scores_equal_a_slow_reference(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, prediction = pair
    confusion = Confusion(CLASSES)
    confusion.add(truth, prediction)
    score = score_confusion(confusion.counts, NAMES)
    dices, ious = [], []
    for index, entry in enumerate(score["classes"]):
        expected = slow_scores(truth, prediction, index)
        assert entry["name"] == NAMES[index]
        for key, value in expected.items():
            assert entry[key] == (None if value is None else pytest.approx(value))
        if expected["dice"] is not None:
            dices.append(expected["dice"])
            ious.append(expected["iou"])
    assert score["mean_dice"] == pytest.approx(sum(dices) / len(dices))
    assert score["mean_iou"] == pytest.approx(sum(ious) / len(ious))
    assert score["accuracy"] == pytest.approx((truth == prediction).mean())
    assert sum(map(sum, score["confusion"])) == truth.size
    json.dumps(score, allow_nan=False)


@given(pairs(), st.integers(1, 5))
def test_counting_by_bands_equals_counting_at_once(pair: tuple[np.ndarray, np.ndarray], rows: int) -> None:
    truth, prediction = pair
    whole, bands = Confusion(CLASSES), Confusion(CLASSES)
    whole.add(truth, prediction)
    for top in range(0, len(truth), rows):
        bands.add(truth[top : top + rows], prediction[top : top + rows])
    np.testing.assert_array_equal(whole.counts, bands.counts)


@given(st.integers(1, 255), st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 3)), st.data())
def test_counts_of_any_number_of_classes_equal_a_histogram_in_two_dimensions(
    classes: int, shape: tuple[int, int, int], data: st.DataObject
) -> None:
    elements = st.integers(0, classes - 1)
    truth, prediction = (data.draw(hnp.arrays(np.uint8, shape, elements=elements)) for _ in range(2))
    expected = np.zeros((classes, classes), np.int64)
    np.add.at(expected, (truth.ravel(), prediction.ravel()), 1)
    for order in (slice(None), slice(None, None, -1)):  # also of arrays that are not contiguous
        counts = count_confusion(truth[order, ::-1], prediction[order, ::-1], classes=classes)
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("classes", [2, 3, 16, 17])
@pytest.mark.parametrize("wrong", [255, 128, None])
def test_a_label_that_is_no_class_is_refused(classes: int, wrong: int | None) -> None:
    """In a byte, 128 * 2 + 0 would count as background."""
    wrong = classes if wrong is None else wrong
    good, bad = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    bad[2, 1] = wrong
    for truth, prediction in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match=f"the class {wrong}, expected 0 to {classes - 1}"):
            count_confusion(truth, prediction, classes=classes)


def test_arrays_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 2\), expected the truth's \(2, 3\)"):
        count_confusion(np.zeros((2, 3), np.uint8), np.zeros((2, 2), np.uint8), classes=2)


def test_rows_are_truth_and_columns_prediction() -> None:
    confusion = Confusion(2)
    confusion.add(np.array([[0, 0, 0, 1]], np.uint8), np.array([[1, 1, 0, 1]], np.uint8))
    np.testing.assert_array_equal(confusion.counts, [[1, 2], [0, 1]])


def test_an_absent_class_is_null_and_not_part_of_the_mean() -> None:
    confusion = Confusion(3)
    confusion.add(np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8))
    score = score_confusion(confusion.counts, NAMES[:3])
    absent = score["classes"][2]
    keys = ("dice", "iou", "precision", "recall", "accuracy")
    assert [absent[key] for key in keys] == [None] * 5
    missed = score["classes"][1]
    assert (missed["dice"], missed["iou"], missed["precision"], missed["recall"]) == (0, 0, None, 0)
    assert score["mean_dice"] == pytest.approx((2 / 3 + 0) / 2)


def test_nothing_counted_gives_null_everywhere() -> None:
    score = score_confusion(Confusion(2).counts, NAMES[:2])
    assert score["mean_dice"] is None
    assert score["accuracy"] is None


def test_a_label_counts_above_255_pairs() -> None:
    """255 classes: truth * classes + prediction does not fit a byte."""
    confusion = Confusion(255)
    confusion.add(np.array([[254]], np.uint8), np.array([[253]], np.uint8))
    assert confusion.counts[254, 253] == 1
    assert confusion.counts.sum() == 1


@given(hnp.arrays(np.uint8, (9, 11), elements=st.integers(0, 1)), st.integers(0, 2**32 - 1))
def test_the_sweep_equals_scoring_at_each_threshold(truth: np.ndarray, seed: int) -> None:
    steps = np.random.default_rng(seed).integers(0, 101, truth.shape)
    probability = (steps / np.float32(100)).astype(np.float32)
    sweep = ThresholdSweep()
    for top in range(0, 9, 4):
        sweep.add(truth[top : top + 4], probability[top : top + 4])
    rows = sweep.report()
    assert [row["threshold"] for row in rows] == [step / 100 for step in range(5, 100, 5)]
    for row in rows:
        confusion = Confusion(2)
        confusion.add(truth, (steps >= round(row["threshold"] * 100)).astype(np.uint8))
        expected = score_confusion(confusion.counts, ("a", "b"))["classes"][1]
        assert {key: row[key] for key in ("dice", "precision", "recall")} == {
            key: expected[key] for key in ("dice", "precision", "recall")
        }


@given(st.integers(2, 4), st.integers(1, 9), st.integers(1, 11), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_bands_in_parts_score_like_the_pixels_inside_at_once(
    classes: int, rows: int, columns: int, kind: int, seed: int
) -> None:
    """Whether all, none or some pixels are inside; pixels that did not run are background."""
    rng, shape, background = np.random.default_rng(seed), (18, 22), seed % classes
    truth = rng.integers(0, classes, shape, dtype=np.uint8)
    probabilities = rng.integers(0, 101, (*shape, classes)).astype(np.float32) / np.float32(100)
    covered = rng.random(shape) < 0.7
    inside = {0: None, 1: np.ones(shape, bool), 2: np.zeros(shape, bool), 3: rng.random(shape) < 0.5}[kind]
    labels = np.where(covered, probabilities.argmax(-1), background).astype(np.uint8)
    score = TruthScore(NAMES[:classes], background)
    for y in range(0, shape[0], rows):
        for x in range(0, shape[1], columns):
            part = (slice(y, y + rows), slice(x, x + columns))
            band = Band(y, probabilities[part], covered[part], x)
            score.add(band, truth[part], labels[part], None if inside is None else inside[part])
    chosen = np.ones(shape, bool) if inside is None else inside
    expected = score_confusion(
        count_confusion(truth[chosen], labels[chosen], classes=classes), NAMES[:classes]
    )
    report = score.report()
    thresholds = report.pop("thresholds", None)
    assert report == expected
    assert (thresholds is None) == (classes != 2)
    if thresholds:
        sweep = ThresholdSweep()
        sweep.add(
            truth[chosen], np.where(covered, probabilities[..., 1], background)[chosen].astype(np.float32)
        )
        assert thresholds == sweep.report()
