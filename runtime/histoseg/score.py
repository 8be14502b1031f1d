"""Confusion counts, and the scores that follow from them.

Dice (L. R. Dice, 1945), IoU (P. Jaccard, 1912), precision and recall of each class. A class that neither the
truth nor the prediction holds is not present: its scores are `None`, never 0 or 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels
    from histoseg.truth import Truth


class Confusion:
    """Counts pixels by truth (rows) and prediction (columns), band by band."""

    def __init__(self, classes: int) -> None:
        """Start at zero."""
        self.counts = np.zeros((classes, classes), np.int64)

    def add(self, truth: Labels, prediction: Labels) -> None:
        """Count two label arrays of one shape."""
        classes = len(self.counts)
        pairs = truth.astype(np.intp) * classes + prediction
        self.counts += np.bincount(pairs.ravel(), minlength=classes * classes).reshape(classes, classes)


def score_confusion(counts: NDArray[np.int64], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Return the scores of each class and overall, ready for JSON.

    Args:
        counts: `(classes, classes)` pixels, rows truth and columns prediction.
        class_names: Name of each class.

    Returns:
        `classes` (name, dice, iou, precision, recall; `None` where a denominator is 0), `mean_dice` over the
        classes that are present, `accuracy`, and `confusion`.
    """
    hits, truth, prediction = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    classes = [
        {
            "name": name,
            "dice": _ratio(2 * hit, in_truth + predicted),
            "iou": _ratio(hit, in_truth + predicted - hit),
            "precision": _ratio(hit, predicted),
            "recall": _ratio(hit, in_truth),
        }
        for name, hit, in_truth, predicted in zip(class_names, hits, truth, prediction, strict=True)
    ]
    sizes = truth + prediction
    present = [2 * hit / size for hit, size in zip(hits, sizes, strict=True) if size]
    return {
        "classes": classes,
        "mean_dice": float(np.mean(present)) if present else None,
        "accuracy": _ratio(hits.sum(), counts.sum()),
        "confusion": counts.tolist(),
    }


def _ratio(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None


class TruthScore:
    """Scores bands of labels against a truth as they come."""

    def __init__(self, truth: Truth, class_names: tuple[str, ...]) -> None:
        """Score against `truth`, at the model's um/px."""
        self._truth = truth
        self._names = class_names
        self._confusion = Confusion(len(class_names))

    def add(self, m_y: int, labels: Labels) -> None:
        """Compare the next rows.

        Raises:
            TruthError: The truth holds a value that is no class.
        """
        self._confusion.add(self._truth.read(m_y, len(labels)), labels)

    def close(self) -> None:
        """Do nothing: the scores are read with `report`."""

    def report(self) -> dict[str, Any]:
        """Return the scores; see `score_confusion`."""
        return score_confusion(self._confusion.counts, self._names)
