"""The pipeline: readers feed batches, the model runs, predictions blend into finished bands.

Reading, inference and blending happen at the same time: a pool of threads reads ahead, one thread runs the
model, the caller's thread blends and consumes bands. Every queue is bounded, so memory is too.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice, repeat
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from histoseg.blend import Band, Blender, join_bands
from histoseg.cancel import name_stop
from histoseg.grid import Grid, Panel, Tile
from histoseg.timing import Stopwatch

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Mask, Pixels
    from histoseg.card import Blend, ModelCard

In = TypeVar("In")
Out = TypeVar("Out")

# Batches that may wait for the model, or for the blender behind it.
BATCHES_AHEAD = 3
# Of 0 to 19: readers still get through when the model keeps every core busy.
READER_NICENESS = 15
# Model pixels in a batch when nobody asks for another size: one tile of 512 px.
BATCH_PIXELS = 512 * 512
# How soon a caller that waits for a batch notices that it was cancelled.
POLL_SECONDS = 0.05


class TileReader(Protocol):
    """Where tiles come from, to several threads: a `ScaledSlide`, or one whose pixels are still coming."""

    def read(self, m_x: int, m_y: int, width: int, height: int) -> Pixels:
        """Return `(height, width, 3)` RGB at the model's um/px, waiting for it if need be."""
        ...

    def must_wait(self, m_x: int, m_y: int, width: int, height: int) -> bool:
        """Return whether a read would wait for pixels that are still to come."""
        ...

    def halt(self) -> None:
        """Make reads that wait fail, and all later ones: nobody wants them any more."""
        ...


class Predictor(Protocol):
    """What the pipeline asks of a model: a `Session`, or what behaves like one."""

    @property
    def card(self) -> ModelCard:
        """What the model expects and gives."""
        ...

    @property
    def batch_size(self) -> int | None:
        """The model's fixed batch size; `None` when it takes any."""
        ...

    def run(self, tiles: Pixels) -> Floats:
        """Return `(batch, height, width, classes)` float32 probabilities, the caller's to write into."""
        ...


@dataclass(frozen=True)
class Leg:
    """What runs of a panel, from top to bottom."""

    panel: Panel
    rows: range
    """Of tiles. The first ones may only lend what they share with the first band that is missing."""
    band: int
    """The first band that is missing."""


@dataclass(frozen=True)
class Plan:
    """What one run does: which tiles, in which batches, blended how."""

    grid: Grid
    runs: Mask
    """`(rows, columns)` of the grid: the tiles that run."""
    blend: Blend
    batch_size: int
    readers: int
    panel_columns: int | None = None
    """Columns of tiles in a panel; `None` runs the slide's whole width at once."""
    done: int = 0
    """Bands, from the first on, that an earlier run has finished."""

    @property
    def panels(self) -> tuple[Panel, ...]:
        """The panels, left to right."""
        return self.grid.cut_panels(self.panel_columns or self.grid.x.count)

    @property
    def run_count(self) -> int:
        """Number of tiles that run; those that two panels share run twice."""
        return sum(int(self.runs[leg.rows][:, leg.panel.columns].sum()) for leg in self.iter_legs())

    def iter_legs(self) -> Iterator[Leg]:
        """Yield what is left of each panel: all of it, unless bands are done."""
        rows = self.grid.y.count
        for index, panel in enumerate(self.panels):
            band = max(0, self.done - index * rows)
            if band < rows:
                yield Leg(panel, range(self.grid.y.first_reaching(band), rows), band)

    def iter_runs(self) -> Iterator[Tile]:
        """Yield the tiles that run, panel by panel, row by row."""
        for leg in self.iter_legs():
            for tile in self.grid.iter_tiles(leg.panel.columns, leg.rows):
                if self.runs[tile.row, tile.column]:
                    yield tile


def iter_rows(
    slide: TileReader,
    session: Predictor,
    plan: Plan,
    *,
    clock: Stopwatch | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
    cancel: threading.Event | None = None,
) -> Generator[Iterator[Band]]:
    """Run a model over a slide and yield finished rows from top to bottom, each in parts from left to right.

    Args:
        slide: Where pixels come from.
        session: The model; it may be shared with other runs.
        plan: Which tiles run and how they blend.
        clock: Gets the seconds of `read`, `infer` and `blend`.
        on_tiles: Called with tiles done and tiles to do, at the start and after each batch, by the caller's
            thread.
        cancel: Once it is set, the run stops within one batch.

    Yields:
        For every panel, and in it for every row of tiles, the parts of one band, each to be taken before the
        next; none of the first `plan.done` bands. Together they cover every pixel of the slide exactly once.

    Raises:
        CancelledError: `cancel` was set.
        SlideError: The slide is damaged.
        ModelError: The model failed.
    """
    clock, note, cancel = (
        clock or Stopwatch(),
        on_tiles or (lambda done, total: None),
        cancel or threading.Event(),
    )
    progress = _Progress(plan.run_count, plan.batch_size, note, cancel)
    # left from the last to the first: the model's thread is out of the batches before these are closed
    with (
        ThreadPoolExecutor(plan.readers, "histoseg-read", initializer=_yield_to_model) as readers,
        closing(_read_batches(slide, plan, readers, clock)) as batches,
        _start_thread("histoseg-infer") as runner,
        closing(_predict(batches, session, plan, runner, clock, progress.check)) as predictions,
        _halting(slide),
    ):
        note(0, plan.run_count)
        for leg in plan.iter_legs():
            parts = _blend(predictions, len(session.card.class_names), plan, leg, clock, progress)
            for row in leg.rows:
                band = _finished(islice(parts, len(leg.panel.columns)), leg.panel)
                if row >= leg.band:
                    yield band
                else:
                    deque(band, maxlen=0)  # an earlier run has handed it on


def iter_bands(
    slide: TileReader,
    session: Predictor,
    plan: Plan,
    *,
    clock: Stopwatch | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
    cancel: threading.Event | None = None,
) -> Generator[Band]:
    """Yield finished bands of probabilities over the width of a panel; see `iter_rows`.

    A band takes `rows x width x classes` float32; `iter_rows` needs the part of one tile only.
    """
    with closing(iter_rows(slide, session, plan, clock=clock, on_tiles=on_tiles, cancel=cancel)) as rows:
        for parts in rows:
            yield join_bands(list(parts))


def choose_batch_size(session: Predictor, tile_size: tuple[int, int], wanted: int | None = None) -> int:
    """Return the model's fixed batch size, or the wanted one, or as many tiles as fill `BATCH_PIXELS`."""
    return session.batch_size or wanted or max(1, BATCH_PIXELS // (tile_size[0] * tile_size[1]))


def map_ordered(
    pool: Executor,
    function: Callable[[In], Out],
    items: Iterable[In],
    *,
    ahead: int,
    check: Callable[[], None] | None = None,
) -> Generator[Out]:
    """Yield `function(item)` in order, with at most `ahead` items submitted and not yet yielded.

    The first exception is raised in its place, or that of `check`, which is called while a result is waited
    for; what has not begun by then, or when the iterator is closed, is cancelled.
    """
    pending: deque[Future[Out]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                _wait_for(pending[0], check)
                yield pending.popleft().result()
        while pending:
            _wait_for(pending[0], check)
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _wait_for(future: Future[Out], check: Callable[[], None] | None) -> None:
    while check and not wait([future], POLL_SECONDS).done:
        check()


@contextmanager
def _start_thread(name: str) -> Iterator[Executor]:
    """Yield an executor of one thread that runs already.

    A signal that comes while a thread starts leaves one that the executor never waits for: now it has
    nothing to do yet.
    """
    with ThreadPoolExecutor(1, name) as executor:
        executor.submit(int).result()
        yield executor


@contextmanager
def _halting(slide: TileReader) -> Iterator[None]:
    try:
        yield
    finally:
        slide.halt()


def _yield_to_model() -> None:
    """Let this thread run only where the model's threads leave a core idle, where the system can do that.

    Operators run on all cores at once and wait for the slowest: a reader that holds one of two cores holds
    up both. Linux has priorities for single threads; elsewhere `setpriority` means the process.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), READER_NICENESS)


@dataclass
class _Progress:
    """Tells how many tiles were run, and stops when that is asked for."""

    total: int
    batch_size: int
    note: Callable[[int, int], None]
    cancel: threading.Event
    done: int = 0

    def check(self) -> None:
        if self.cancel.is_set():
            raise name_stop(self.cancel, f"after {self.done} of {self.total} tiles")

    def advance(self) -> None:
        self.done += 1
        if self.done % self.batch_size == 0 or self.done == self.total:
            self.note(self.done, self.total)


def _blend(
    predictions: Iterator[tuple[Tile, Floats]],
    channels: int,
    plan: Plan,
    leg: Leg,
    clock: Stopwatch,
    progress: _Progress,
) -> Iterator[Band]:
    """Yield the final part of every tile of a leg, whether it ran or not."""
    blender = Blender(plan.grid, channels, plan.blend, leg.panel)
    for tile in plan.grid.iter_tiles(leg.panel.columns, leg.rows):
        progress.check()  # a slide of bare glass runs no tile at all
        prediction = None
        if plan.runs[tile.row, tile.column]:
            _, prediction = next(predictions)
            progress.advance()
        with clock.time("blend"):
            band = blender.add(tile, prediction)
        yield band


def _finished(parts: Iterator[Band], panel: Panel) -> Iterator[Band]:
    """Leave out what tiles of the panel before finish."""
    return (part for part in parts if part.m_x >= panel.m_x0)


def _read_batches(
    slide: TileReader, plan: Plan, readers: Executor, clock: Stopwatch
) -> Generator[list[tuple[Tile, Pixels]]]:
    """Yield tiles in batches; a short one where the next tile's pixels are still to come, and at the end."""
    size, batch = plan.grid.tile_size, list[tuple["Tile", "Pixels"]]()

    def read(tile: Tile) -> Pixels:
        with clock.time("read"):
            return slide.read(tile.m_x, tile.m_y, *size)

    ahead = plan.readers + 2 * plan.batch_size
    with closing(map_ordered(readers, read, plan.iter_runs(), ahead=ahead)) as pixels:
        for tile in plan.iter_runs():
            full = len(batch) == plan.batch_size
            if full or (batch and slide.must_wait(tile.m_x, tile.m_y, *size)):
                yield batch
                batch = []
            batch.append((tile, next(pixels)))
        if batch:
            yield batch


def _predict(
    batches: Iterator[list[tuple[Tile, Pixels]]],
    session: Predictor,
    plan: Plan,
    runner: Executor,
    clock: Stopwatch,
    check: Callable[[], None],
) -> Generator[tuple[Tile, Floats]]:
    """Yield tiles with their predictions; the model's thread takes the batches, too, and waits for them."""
    width, height = plan.grid.tile_size

    def infer_next(_: None) -> list[tuple[Tile, Floats]]:
        batch = next(batches, [])
        if not batch:
            return []
        check()  # the caller may be busy with bands, and notice later
        short = plan.batch_size - len(batch)
        pixels = [rgb for _, rgb in batch] + [np.zeros((height, width, 3), np.uint8)] * short
        with clock.time("infer"):
            predictions = session.run(np.stack(pixels))
        return [(tile, predictions[slot]) for slot, (tile, _) in enumerate(batch)]

    with closing(map_ordered(runner, infer_next, repeat(None), ahead=BATCHES_AHEAD, check=check)) as results:
        for batch in results:
            if not batch:
                return
            yield from batch
