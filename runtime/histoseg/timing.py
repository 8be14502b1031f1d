"""Seconds spent in each stage of a run, summed over its threads."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the seconds that each named stage is busy. Safe from several threads."""

    def __init__(self) -> None:
        """Start the total."""
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._begin = time.perf_counter()

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Count the time inside the block towards `stage`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            with self._lock:
                self._seconds[stage] += seconds

    def report(self, stages: tuple[str, ...]) -> dict[str, float]:
        """Return seconds for each of `stages`, and `total`: wall-clock seconds since the start."""
        with self._lock:
            busy = {stage: round(self._seconds[stage], 4) for stage in stages}
        return {**busy, "total": round(time.perf_counter() - self._begin, 4)}
