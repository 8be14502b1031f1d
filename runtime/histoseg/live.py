"""A slide that is still being scanned: pixels are pushed while a run reads them.

A live slide has one level. A run of it gives the same bytes as one of the finished file, if the file's level
0 holds these pixels and is the level that is read, and every tile runs (`tissue=False`): tissue is found on
the whole slide, which is not there yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from histoseg.errors import OptionError, SlideError
from histoseg.livestore import MIB, LiveStore, Window
from histoseg.overview import OVERVIEW_BLOCK_PX
from histoseg.readorder import ReadOrder
from histoseg.strips import STRIP_ROWS

if TYPE_CHECKING:
    from histoseg.arrays import Labels, Pixels
    from histoseg.engine import Plan, TileReader
    from histoseg.overview import OverviewBuilder
    from histoseg.slide import ScaledSlide

# Pixels that may be held when nobody says, before a run is there that says what it needs.
DEFAULT_BYTES = 256 * MIB
# No overview of a slide that is larger has fewer pixels on its longer side.
LEAST_PICTURE_PX = 1500
PUSH_TIMEOUT_SECONDS = 60.0


class LiveSlide:
    """A slide that a scanner pushes while it is segmented. Safe from several threads; runs once.

    The scanner's thread pushes, then calls `finish` or `abort`; another one hands the slide to
    `Segmenter.segment` or `stream`, before or after the first push. As a context manager, around the pushes,
    it is finished on leaving, or aborted when an error leaves.

    Pixels may come in any order and any rectangles. Where two pushes overlap, the first stays, whenever the
    second comes. What was never pushed is white. A tile runs once all its pixels have come, and tiles run row
    by row: what comes far ahead of the first missing tile waits in memory, up to `max_bytes`. Of these the
    rows that the next tiles need keep their share: a push that finds no room leaves room for them.
    """

    def __init__(
        self,
        width: int,
        height: int,
        spacing_um_px: float | tuple[float, float],
        *,
        name: str = "live",
        max_bytes: int | None = None,
    ) -> None:
        """Begin a scan.

        Args:
            width: Of the whole slide, in pixels.
            height: Of the whole slide.
            spacing_um_px: um/px, or those along x and y.
            name: Names the folder of results.
            max_bytes: Memory for pixels that wait; when `None`, 256 MiB, or what the run works on at a time
                and another row of tiles, if that is more.

        Raises:
            SlideError: The size is not positive, or `max_bytes` holds not even a strip.
        """
        if width < 1 or height < 1:
            raise SlideError(f"the live slide is {width} x {height} px, expected at least 1 x 1")
        least = 2 * STRIP_ROWS * width * 4
        if max_bytes is not None and max_bytes < least:
            raise SlideError(f"max_bytes is {max_bytes}, expected at least {least} for {width} columns")
        self.name = name
        self.level_sizes: tuple[tuple[int, int], ...] = ((width, height),)
        x, y = spacing_um_px if isinstance(spacing_um_px, tuple) else (spacing_um_px, spacing_um_px)
        self.spacing_um_px: tuple[float, float] | None = (float(x), float(y))
        self.max_bytes = max_bytes
        self.store = LiveStore(name, width, height, max_bytes or max(DEFAULT_BYTES, least))
        """For the engine."""

    def __enter__(self) -> Self:
        """Return the slide itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the scan, or abort it when an error leaves."""
        if error is None:
            self.finish()
        else:
            self.abort(f"{type(error).__name__}: {error}")

    @property
    def held_bytes(self) -> int:
        """Memory of the pixels that are held now."""
        return self.store.held_bytes

    @property
    def gap_px(self) -> int | None:
        """Pixels that had not come when the scan was finished, and are white; `None` until then."""
        return self.store.gap_px

    def push(self, x: int, y: int, rgb: Pixels, *, timeout_seconds: float = PUSH_TIMEOUT_SECONDS) -> None:
        """Hand over pixels: a row, a strip or a field of view. They are copied.

        Returns at once while there is room; when `max_bytes` are held, it waits until the run has read more.
        A push that found no room may be repeated: what it has stored already stays.

        Args:
            x: Column of the left edge.
            y: Row of the upper edge.
            rgb: `(height, width, 3)` uint8, inside the slide.
            timeout_seconds: How long to wait for room.

        Raises:
            SlideError: The pixels do not fit, or the scan was finished or aborted, or there can be no room:
                the run waits for other pixels, which come later.
            PushTimeoutError: No room was made in time.
            CancelledError: The run has failed or was cancelled: nobody needs the pixels.
        """
        self._check_pixels(x, y, rgb)
        self.store.push(x, y, rgb, timeout_seconds)

    def finish(self) -> int:
        """Say that all has come, and return how many pixels never came; these are white.

        Raises:
            SlideError: The scan was aborted.
            CancelledError: The run has failed or was cancelled.
        """
        return self.store.finish()

    def abort(self, reason: str = "the scanner stopped") -> None:
        """Give the scan up: its run fails, all its pixels are dropped."""
        self.store.fail(SlideError(f"{self.name}: the scan was aborted ({reason}); scan the slide again"))

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return a region, `(height, width, 3)`, once all of it has come.

        Raises:
            SlideError: The scan was aborted, or the pixels are gone.
            CancelledError: The run was stopped.
        """
        assert level == 0
        return self.store.read((x, y, x + width, y + height))

    def _check_pixels(self, x: int, y: int, rgb: Pixels) -> None:
        width, height = self.level_sizes[0]
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise SlideError(
                f"{self.name}: pushed {rgb.dtype} {rgb.shape}, expected uint8 (height, width, 3)"
            )
        if min(x, y) < 0 or x + rgb.shape[1] > width or y + rgb.shape[0] > height:
            raise SlideError(
                f"{self.name}: pushed {rgb.shape[1]} x {rgb.shape[0]} px at ({x}, {y}), expected inside "
                f"{width} x {height} px"
            )


class LiveReader:
    """Reads the tiles of one run of a live slide, and lets it forget what no later tile needs."""

    def __init__(self, live: LiveSlide, slide: ScaledSlide) -> None:
        """Read `live` at the um/px of `slide`; see `open_reader`."""
        self._store = live.store
        self._slide = slide

    def read(self, m_x: int, m_y: int, width: int, height: int) -> Pixels:
        """Return a tile once its pixels have come."""
        pixels = self._slide.read(m_x, m_y, width, height)
        self._store.mark_read(m_x, m_y)
        return pixels

    def must_wait(self, m_x: int, m_y: int, width: int, height: int) -> bool:
        """Return whether pixels of a tile are still to come."""
        return not self._store.is_settled(self._slide.cover(m_x, m_y, width, height))

    def halt(self) -> None:
        """Make reads that wait fail."""
        self._store.halt()


class LivePicture:
    """Lets the overview of a live slide follow the labels, and the slide forget what it has read."""

    def __init__(self, live: LiveSlide, slide: ScaledSlide, overview: OverviewBuilder) -> None:
        """Begin at the top."""
        self._store = live.store
        self._slide = slide
        self._overview = overview

    def add(self, m_y: int, labels: Labels) -> None:
        """Read the overview as far as labels have come."""
        m_end, l0_height = m_y + len(labels), self._slide.slide.level_sizes[0][1]
        whole = m_end == self._slide.m_size[1]
        l0_end = l0_height if whole else int(m_end * self._slide.scale.level_per_m[1])
        self._overview.advance(l0_end)
        self._store.forget_picture(self._overview.floor)

    def close(self) -> None:
        """Leave the rest to whoever draws."""


@contextmanager
def open_reader(
    slide: ScaledSlide, plan: Plan, *, picture: bool = False, cancel: Event | None = None
) -> Iterator[TileReader]:
    """Yield what reads the tiles of a run: the slide itself, unless it is live.

    Args:
        slide: The slide at the model's um/px.
        plan: What runs.
        picture: Whether an overview is drawn, which reads rows once more.
        cancel: Once it is set, reads of a live slide that wait fail.

    Raises:
        OptionError: `max_bytes` of a live slide cannot hold what the run needs at a time.
        SlideError: A live slide was run before, or aborted.
    """
    live = slide.slide
    if not isinstance(live, LiveSlide):
        yield slide
        return
    order = ReadOrder(slide, plan)
    window = _plan_window(live, order, picture)
    with live.store.run(order, window, cancel=cancel):
        yield LiveReader(live, slide)


def _plan_window(live: LiveSlide, order: ReadOrder, picture: bool) -> Window:
    """Return the rows that a run works on at a time, and see that there is room for them.

    Raises:
        OptionError: `max_bytes` was given, and cannot hold them.
    """
    width, height = live.level_sizes[0]
    # a block of the picture is read once labels reach below it; its edges lie between two rows of the picture
    lag = OVERVIEW_BLOCK_PX + 2 * math.ceil(max(width, height) / LEAST_PICTURE_PX) if picture else 0
    rows = order.tallest + lag
    held_bytes = min(rows + 2 * STRIP_ROWS, height) * width * 4
    if live.max_bytes is None:
        live.store.raise_bound(held_bytes + order.tallest * width * 4)
    elif live.max_bytes < held_bytes:
        raise OptionError(
            f"max_bytes is {live.max_bytes // MIB} MiB, expected at least {-(-held_bytes // MIB)} MiB for "
            "this slide, model and output"
        )
    return Window(rows, lag, held_bytes)
