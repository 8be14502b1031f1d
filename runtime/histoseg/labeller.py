"""Turns finished probabilities into labels, and counts what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.blend import Band, label_band
from histoseg.finished import Rows
from histoseg.outputs.classes import ClassCounts
from histoseg.outputs.probabilities import quantize_probabilities
from histoseg.score import TruthScore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Labels, Mask
    from histoseg.card import ModelCard
    from histoseg.grid import Panel
    from histoseg.roi import Roi
    from histoseg.timing import Stopwatch
    from histoseg.truth import Truth


class BandRows:
    """What a mask says of the band at hand, over the columns of its panel alone."""

    def __init__(self, read: Callable[[int, int, int, int], NDArray[Any]], panels: Sequence[Panel]) -> None:
        """Read by `read(m_y, count, m_x0, m_x1)`."""
        self._read = read
        self._panels = panels
        self._at: tuple[int, Panel] | None = None
        self._rows: NDArray[Any] | None = None

    def cut(self, part: Band) -> NDArray[Any]:
        """Return the values of the pixels of a part; parts come band by band, panel by panel."""
        rows, columns = part.covered.shape
        panel = next(panel for panel in self._panels if part.m_x < panel.m_x1)
        if self._rows is None or self._at != (part.m_y, panel):
            self._rows = None  # two bands need not fit
            self._rows, self._at = self._read(part.m_y, rows, panel.m_x0, panel.m_x1), (part.m_y, panel)
        left = part.m_x - panel.m_x0
        return self._rows[:, left : left + columns]


class Labeller:
    """Labels bands; outside a region of interest all is background, and nothing counts."""

    def __init__(
        self,
        card: ModelCard,
        clock: Stopwatch,
        panels: Sequence[Panel],
        *,
        threshold: float | None = None,
        roi: Roi | None = None,
        truth: Truth | None = None,
        shares: bool = False,
    ) -> None:
        """Begin with nothing counted.

        Args:
            card: The model's classes.
            clock: Gets the seconds of `write`.
            panels: The panels that parts of bands come from, left to right.
            threshold: Of two-class models, over what the card says.
            roi: Where pixels count.
            truth: What to score against.
            shares: Whether probabilities are handed on, too.
        """
        self._background = card.background_index
        self._threshold = card.output.threshold if threshold is None else threshold
        self._clock = clock
        self._wants_shares = shares
        self._inside = BandRows(roi.read, panels) if roi else None
        self._truth = BandRows(truth.read, panels) if truth else None
        self._counts = ClassCounts(card.class_names)
        self._score = TruthScore(card.class_names, card.background_index)

    @property
    def counts(self) -> dict[str, NDArray[np.int64]]:
        """All that was counted so far, by name; to be written to, where a run goes on."""
        return {"pixels": self._counts.pixels, **self._score.counts}

    def label(self, parts: Iterator[Band]) -> Rows:
        """Return the finished rows of a band that comes in parts."""
        labels, shares, m_y = [], [], 0
        for part in parts:
            with self._clock.time("write"):
                labels.append(self._label_part(part))
                if self._wants_shares:
                    shares.append(quantize_probabilities(part.probabilities))
            m_y = part.m_y
        return Rows(m_y, np.concatenate(labels, axis=1), np.concatenate(shares, axis=1) if shares else None)

    def report(self, spacing_um_px: tuple[float, float]) -> dict[str, Any]:
        """Return `classes`, and `score`, which is `None` without a truth."""
        score = self._score.report() if self._truth else None
        return {"classes": self._counts.report(spacing_um_px), "score": score}

    def _label_part(self, part: Band) -> Labels:
        labels = label_band(part, background=self._background, threshold=self._threshold)
        inside: Mask | None = self._inside.cut(part) if self._inside else None
        if inside is not None:
            labels[~inside] = self._background
        self._counts.add(labels if inside is None else labels[inside])
        if self._truth is not None:
            self._score.add(part, self._truth.cut(part), labels, inside)
        return labels
