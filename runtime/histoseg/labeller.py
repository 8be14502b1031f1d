"""Turns finished probabilities into labels, and counts what they say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.blend import Band, label_band
from histoseg.outputs.classes import ClassCounts
from histoseg.score import TruthScore

if TYPE_CHECKING:
    from histoseg.arrays import Labels, Mask
    from histoseg.card import ModelCard
    from histoseg.roi import Roi
    from histoseg.timing import Stopwatch
    from histoseg.truth import Truth


class Labeller:
    """Labels bands; outside a region of interest all is background, and nothing counts."""

    def __init__(
        self,
        card: ModelCard,
        clock: Stopwatch,
        *,
        threshold: float | None = None,
        roi: Roi | None = None,
        truth: Truth | None = None,
    ) -> None:
        """Begin with nothing counted.

        Args:
            card: The model's classes.
            clock: Gets the seconds of `write`.
            threshold: Of two-class models, over what the card says.
            roi: Where pixels count.
            truth: What to score against.
        """
        self._background = card.background_index
        self._threshold = card.output.threshold if threshold is None else threshold
        self._clock = clock
        self._roi = roi
        self._rows: tuple[int, Mask] | None = None
        self._counts = ClassCounts(card.class_names)
        self._score = TruthScore(truth, card.class_names, card.background_index) if truth else None

    def label(self, parts: Iterator[Band]) -> tuple[int, Labels]:
        """Return the first row and the labels, `(rows, width)` uint8, of a band that comes in parts."""
        labels, m_y = [], 0
        for part in parts:
            with self._clock.time("write"):
                labels.append(self._label_part(part))
            m_y = part.m_y
        return m_y, np.concatenate(labels, axis=1)

    def report(self, spacing_um_px: tuple[float, float]) -> dict[str, Any]:
        """Return `classes`, and `score` where there is a truth."""
        scores = {"score": self._score.report()} if self._score else {}
        return {"classes": self._counts.report(spacing_um_px), **scores}

    def _label_part(self, part: Band) -> Labels:
        labels = label_band(part, background=self._background, threshold=self._threshold)
        inside = self._read_inside(part)
        if inside is not None:
            labels[~inside] = self._background
        self._counts.add(labels if inside is None else labels[inside])
        if self._score is not None:
            self._score.add(part, labels, inside)
        return labels

    def _read_inside(self, part: Band) -> Mask | None:
        if self._roi is None:
            return None
        rows, columns = part.covered.shape
        if self._rows is None or self._rows[0] != part.m_y:
            self._rows = (part.m_y, self._roi.read(part.m_y, rows))
        return self._rows[1][:, part.m_x : part.m_x + columns]
