"""How far a run is, how fast it goes, and which of its stages holds up the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from histoseg.engine import Plan
    from histoseg.timing import Stopwatch

STAGES = ("read", "infer", "blend", "write")
# Until a thread was busy that long, the first read and the first batch decide what limits.
EARLY_SECONDS = 1.0
# Speed is that of the last one to two spans: stained tiles and glass differ, a start is slow.
SPAN_SECONDS = 15.0


@dataclass(frozen=True)
class RunProgress:
    """How far one slide's run is."""

    done: int
    """Tiles."""
    known: int
    """Tiles to do."""
    seconds: float
    """Since the run began."""
    mm2: float
    """Area of the slide that is done: tiles times the grid's step, never more than the slide."""
    limit: str | None
    """The stage that limits: `read`, `infer`, `blend` or `write`; `None` while it is too early to say."""


class ProgressMeter:
    """Turns tiles done into what a person wants to know of a run."""

    def __init__(self, plan: Plan, spacing_um_px: tuple[float, float], clock: Stopwatch) -> None:
        """Measure a run.

        Args:
            plan: What the run does.
            spacing_um_px: um/px of the plan's pixels, in x and in y.
            clock: What the run's stages are timed with; it began with the run.
        """
        grid = plan.grid
        mm2_per_px = spacing_um_px[0] * spacing_um_px[1] / 1e6
        self._tile_mm2 = grid.x.step * grid.y.step * mm2_per_px
        self._slide_mm2 = math.prod(grid.m_size) * mm2_per_px
        self._readers = plan.readers
        self._clock = clock

    def measure(self, done: int, known: int) -> RunProgress:
        """Return how far the run is after `done` of `known` tiles."""
        busy = self._clock.report(STAGES)
        return RunProgress(
            done=done,
            known=known,
            seconds=busy["total"],
            mm2=min(done * self._tile_mm2, self._slide_mm2),
            limit=name_limit(busy, self._readers),
        )


def name_limit(busy: Mapping[str, float], readers: int) -> str | None:
    """Return the stage whose thread is the busiest; `None` while it is too early to say.

    Args:
        busy: Seconds of each of `STAGES`, summed over its threads. Reading has `readers` of them, the model
            one; blending and writing share the caller's.
        readers: At least 1.
    """
    caller = max("blend", "write", key=busy.__getitem__)
    threads = {
        "read": busy["read"] / readers,
        "infer": busy["infer"],
        caller: busy["blend"] + busy["write"],
    }
    limit = max(threads, key=threads.__getitem__)
    return limit if threads[limit] >= EARLY_SECONDS else None


@dataclass(frozen=True)
class Pace:
    """The speed of a run of late: between `since` and `now`."""

    since: RunProgress
    mark: RunProgress
    """Where `since` moves to once it is a span old."""
    now: RunProgress

    @classmethod
    def begin(cls, progress: RunProgress) -> Pace:
        """Return the pace of a run that is heard of for the first time."""
        return cls(progress, progress, progress)

    def follow(self, progress: RunProgress) -> Pace:
        """Return the pace after the next progress; a run that fell back begins anew."""
        if progress.done < self.now.done or progress.seconds < self.now.seconds:
            return Pace.begin(progress)
        if progress.seconds - self.mark.seconds > SPAN_SECONDS:
            return Pace(self.mark, progress, progress)
        return Pace(self.since, self.mark, progress)

    @property
    def tiles_per_second(self) -> float | None:
        """`None` while nothing is known."""
        return self._divide(self.now.done - self.since.done)

    @property
    def mm2_per_second(self) -> float | None:
        """`None` while nothing is known."""
        return self._divide(self.now.mm2 - self.since.mm2)

    @property
    def seconds_left(self) -> float | None:
        """At this pace; `None` while nothing is known."""
        speed = self.tiles_per_second
        return (self.now.known - self.now.done) / speed if speed else None

    def _divide(self, amount: float) -> float | None:
        seconds = self.now.seconds - self.since.seconds
        return amount / seconds if seconds > 0 and amount > 0 else None
