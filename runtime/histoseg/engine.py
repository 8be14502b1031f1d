"""The pipeline: readers feed batches, the model runs, predictions blend into finished bands.

Reading, inference and blending happen at the same time: a pool of threads reads ahead, one thread runs the
model, the caller's thread blends and consumes bands. Every queue is bounded, so memory is too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from histoseg.blend import Band, Blender, join_bands
from histoseg.grid import Grid, Tile
from histoseg.session import Session
from histoseg.slide import ScaledSlide
from histoseg.timing import Stopwatch

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Pixels
    from histoseg.card import Blend

In = TypeVar("In")
Out = TypeVar("Out")

# Batches that may wait for the model, or for the blender behind it.
BATCHES_AHEAD = 3
# Model pixels in a batch when nobody asks for another size: one tile of 512 px.
BATCH_PIXELS = 512 * 512


@dataclass(frozen=True)
class Plan:
    """What one run does: which tiles, in which batches, blended how."""

    grid: Grid
    tiles: tuple[Tile, ...]
    """The tiles that run, row by row."""
    blend: Blend
    batch_size: int
    readers: int


def iter_rows(
    slide: ScaledSlide,
    session: Session,
    plan: Plan,
    *,
    clock: Stopwatch | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
) -> Generator[Iterator[Band]]:
    """Run a model over a slide and yield finished rows from top to bottom, each in parts from left to right.

    Args:
        slide: Where pixels come from.
        session: The model; it may be shared with other runs.
        plan: Which tiles run and how they blend.
        clock: Gets the seconds of `read`, `infer` and `blend`.
        on_tiles: Called with tiles done and tiles to do, at the start and after each batch, by the caller's
            thread.

    Yields:
        For every row of tiles the parts of one band, each to be taken before the next. Together they cover
        every pixel of the slide exactly once.

    Raises:
        SlideError: The slide is damaged.
        ModelError: The model failed.
    """
    clock, note = clock or Stopwatch(), on_tiles or (lambda done, total: None)
    with (
        ThreadPoolExecutor(plan.readers, "histoseg-read") as readers,
        ThreadPoolExecutor(1, "histoseg-infer") as runner,
    ):
        predictions = _predict(slide, session, plan, readers, runner, clock)
        with closing(predictions), closing(_blend(predictions, session, plan, clock, note)) as parts:
            for _ in range(plan.grid.y.count):
                yield islice(parts, plan.grid.x.count)


def iter_bands(
    slide: ScaledSlide,
    session: Session,
    plan: Plan,
    *,
    clock: Stopwatch | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
) -> Generator[Band]:
    """Yield finished bands of probabilities over the slide's whole width; see `iter_rows`.

    A band takes `rows x slide width x classes` float32; `iter_rows` needs the part of one tile only.
    """
    with closing(iter_rows(slide, session, plan, clock=clock, on_tiles=on_tiles)) as rows:
        for parts in rows:
            yield join_bands(list(parts))


def choose_batch_size(session: Session, tile_size: tuple[int, int], wanted: int | None = None) -> int:
    """Return the model's fixed batch size, or the wanted one, or as many tiles as fill `BATCH_PIXELS`."""
    return session.batch_size or wanted or max(1, BATCH_PIXELS // (tile_size[0] * tile_size[1]))


def map_ordered(
    pool: Executor, function: Callable[[In], Out], items: Iterable[In], *, ahead: int
) -> Iterator[Out]:
    """Yield `function(item)` in order, with at most `ahead` items submitted and not yet yielded.

    The first exception is raised in its place; what has not begun by then, or when the iterator is closed,
    is cancelled.
    """
    pending: deque[Future[Out]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _blend(
    predictions: Iterator[tuple[Tile, Floats]],
    session: Session,
    plan: Plan,
    clock: Stopwatch,
    note: Callable[[int, int], None],
) -> Generator[Band]:
    """Yield the final part of every tile of the grid, whether it ran or not."""
    blender = Blender(plan.grid, len(session.card.class_names), plan.blend)
    total = len(plan.tiles)
    waiting, done = deque(plan.tiles), 0
    note(done, total)
    for tile in plan.grid.iter_tiles():
        prediction = None
        if waiting and waiting[0] == tile:
            waiting.popleft()
            _, prediction = next(predictions)
            done += 1
        with clock.time("blend"):
            band = blender.add(tile, prediction)
        if prediction is not None and (done % plan.batch_size == 0 or done == total):
            note(done, total)
        yield band


def _predict(
    slide: ScaledSlide, session: Session, plan: Plan, readers: Executor, runner: Executor, clock: Stopwatch
) -> Generator[tuple[Tile, Floats]]:
    width, height = plan.grid.tile_size

    def read(tile: Tile) -> tuple[Tile, Pixels]:
        with clock.time("read"):
            return tile, slide.read(tile.m_x, tile.m_y, width, height)

    def infer(batch: list[tuple[Tile, Pixels]]) -> list[tuple[Tile, Floats]]:
        pixels = np.zeros((plan.batch_size, height, width, 3), np.uint8)
        for slot, (_, rgb) in enumerate(batch):
            pixels[slot] = rgb
        with clock.time("infer"):
            predictions = session.run(pixels)
        return [(tile, predictions[slot]) for slot, (tile, _) in enumerate(batch)]

    read_tiles = map_ordered(readers, read, plan.tiles, ahead=plan.readers + plan.batch_size)
    for batch in map_ordered(runner, infer, _batches(read_tiles, plan.batch_size), ahead=BATCHES_AHEAD):
        yield from batch


def _batches(items: Iterator[In], size: int) -> Iterator[list[In]]:
    while batch := list(islice(items, size)):
        yield batch
