"""A fleet in this very process: one slide after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from histoseg.fleet.run import ModelChoice, ModelFacts, Order, Outcome, run_slide
from histoseg.fleet.sources import SlideSource

Emit = Callable[[int, dict[str, Any]], None]
"""Takes the number of a slide and one of its events: `slide`, `tiles` or `note`."""


class Runner(ABC):
    """Runs slides. A context manager: what it has started ends with it."""

    facts: ModelFacts
    jobs: int
    """Slides at a time."""

    def __enter__(self) -> Self:
        """Return the runner itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End what it has started."""

    @abstractmethod
    def run(self, slides: Sequence[SlideSource], emit: Emit) -> Iterator[tuple[int, Outcome]]:
        """Yield the number of each slide and how it ended, in the order in which they end."""


class Here(Runner):
    """Runs slides in this process."""

    jobs = 1

    def __init__(self, choice: ModelChoice, order: Order) -> None:
        """Open the model.

        Raises:
            HistosegError: See `ModelChoice.open`.
        """
        self._order = order
        self._session = choice.open(order.options)
        self.facts = ModelFacts.of(self._session)

    def close(self) -> None:
        """Release the model."""
        self._session.__exit__(None, None, None)

    def run(self, slides: Sequence[SlideSource], emit: Emit) -> Iterator[tuple[int, Outcome]]:
        """Yield how each slide ended; see `Runner`."""
        for index, slide in enumerate(slides):
            emit(index, {"event": "slide"})
            yield index, run_slide(slide, self._session, self._order, partial(emit, index))
