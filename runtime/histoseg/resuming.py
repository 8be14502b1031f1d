"""Bands are kept in a journal before they are handed on; a run that was killed takes up where it ended."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.finished import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.blend import Band
    from histoseg.journal import Journal
    from histoseg.labeller import Labeller


class KeptRows:
    """The rows of a run, of which the journal may hold the first."""

    def __init__(
        self,
        journal: Journal | None,
        labeller: Labeller,
        run_rest: Callable[[int], Generator[Iterator[Band]]],
    ) -> None:
        """Begin with nothing taken.

        Args:
            journal: What an earlier run has left, and where this one keeps its bands.
            labeller: Labels and counts what runs; what the journal has counted is taken over.
            run_rest: Given a number of bands that are done, yields the parts of each other one.
        """
        self._journal = journal
        self._labeller = labeller
        self._run_rest = run_rest
        self.resumed = 0
        """Bands that were taken over."""

    def iter_rows(self) -> Generator[Rows]:
        """Yield the rows of every band, panel by panel; to be closed where they are not used up.

        Raises:
            OutputError: The journal cannot be written.
            HistosegError: What `run_rest` raises.
        """
        if self._journal is not None:
            for arrays in self._journal.replay():
                self.resumed += 1
                yield self._take_over(arrays)
        with closing(self._run_rest(self.resumed)) as bands:
            for parts in bands:
                rows = self._labeller.label(parts)
                if self._journal is not None:
                    self._journal.append(_describe(rows) | self._labeller.counts)
                yield rows

    def _take_over(self, arrays: dict[str, NDArray[Any]]) -> Rows:
        for name, counts in self._labeller.counts.items():
            counts[...] = arrays[name]
        return Rows(int(arrays["m_y"]), arrays["labels"], arrays.get("shares"))


def _describe(rows: Rows) -> dict[str, NDArray[Any]]:
    shares = {} if rows.shares is None else {"shares": rows.shares}
    return {"m_y": np.array(rows.m_y), "labels": rows.labels, **shares}
