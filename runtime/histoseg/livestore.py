"""Where a scanner's thread and a run's threads meet: pixels come, tiles wait for theirs, memory is bounded.

Every method is safe from any thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Event
from typing import TYPE_CHECKING

from histoseg.cancel import check_cancel
from histoseg.errors import CancelledError, PushTimeoutError, SlideError
from histoseg.strips import Region, StripStore, join_views

if TYPE_CHECKING:
    from histoseg.arrays import Pixels
    from histoseg.readorder import ReadOrder

MIB = 1 << 20
# How soon a read that waits for pixels notices that the run was cancelled.
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Window:
    """The rows that a run of a live slide works on at a time, from the first that it still needs."""

    rows: int
    lag: int
    """Those of them that a picture keeps, which trails the tiles."""
    held_bytes: int
    """What they take, whole strips of them."""


@dataclass(frozen=True, eq=False)
class _Want:
    """A region that a thread waits for."""

    region: Region
    settled: Event = field(default_factory=Event)


class LiveStore:
    """Pixels of a slide that is being scanned, held until the one run that reads them needs them no more."""

    def __init__(self, name: str, width: int, height: int, max_bytes: int) -> None:
        """Begin without a pixel, a run or an end."""
        self._name = name
        self._max_bytes = max_bytes
        self._strips = StripStore(width, height)
        # whoever pushes waits here for room; whoever reads has an event of its own
        self._room = Condition()
        self._wants: list[_Want] = []
        self._order: ReadOrder | None = None
        self._window = Window(0, 0, 0)
        self._cancel: Event | None = None
        self._picture_floor = height
        self._failure: SlideError | CancelledError | None = None
        self._finished = False
        self.gap_px: int | None = None

    @property
    def held_bytes(self) -> int:
        """Memory of the pixels that are held now."""
        return self._strips.held_bytes

    # the scanner's side

    def push(self, x: int, y: int, rgb: Pixels, timeout_seconds: float) -> None:
        """Take pixels, strip by strip, as room is made; see `LiveSlide.push`."""
        end = time.monotonic() + timeout_seconds
        for top, rows in self._strips.cut(y, rgb):
            with self._room:
                self._wait_for_room(top, end, timeout_seconds)
                self._strips.write(x, top, rows)
                self._wake((x, top, x + rows.shape[1], top + len(rows)))

    def finish(self) -> int:
        """Say that no pixel comes any more; return how many never came."""
        with self._room:
            if self._failure:
                raise _repeat(self._failure)
            if not self._finished:
                self.gap_px = self._strips.fill()
                self._finished = True
                self._wake(None)
            return self.gap_px or 0

    def fail(self, failure: SlideError | CancelledError) -> None:
        """Let everybody who waits, or comes later, fail with the first failure; the pixels are dropped."""
        with self._room:
            self._failure = self._failure or failure
            self._strips.forget(self._strips.height)
            self._wake(None)

    # the run's side

    @contextmanager
    def run(self, order: ReadOrder, window: Window, *, cancel: Event | None) -> Iterator[None]:
        """Let a run read, the only one there may be.

        Args:
            order: The tiles that it reads.
            window: The rows that it works on; with a lag, they are kept until `forget_picture`.
            cancel: Once it is set, reads that wait fail.

        Raises:
            SlideError: There was a run before, or the scan was aborted.
        """
        with self._room:
            if self._failure:
                raise _repeat(self._failure)
            if self._order is not None:
                raise SlideError(
                    f"{self._name}: is or was run already, and its pixels are gone; a live slide runs once"
                )
            self._order, self._window, self._cancel = order, window, cancel
            self._picture_floor = 0 if window.lag else self._strips.height
            self._forget()
        try:
            yield
        finally:
            self._end_run()

    def raise_bound(self, max_bytes: int) -> None:
        """Hold at least so many bytes."""
        with self._room:
            self._max_bytes = max(self._max_bytes, max_bytes)
            self._room.notify_all()

    def read(self, region: Region) -> Pixels:
        """Return a region once all of it has come.

        Raises:
            SlideError: The scan was aborted, or the region was forgotten.
            CancelledError: The run was stopped.
        """
        want = _Want(region)
        with self._room:
            if self._is_settled(region):
                want.settled.set()
            else:
                self._wants.append(want)
        while not want.settled.wait(POLL_SECONDS):
            check_cancel(self._cancel, f"pixels of {self._name} were waited for")
        with self._room:
            if self._failure:
                raise _repeat(self._failure)
            if region[1] < self._strips.floor:
                raise SlideError(
                    f"{self._name}: rows from {region[1]} on are gone; a live slide is read once"
                )
            views = self._strips.view(region)
        return join_views(views, region)  # what has come changes no more

    def is_settled(self, region: Region) -> bool:
        """Return whether a read would not wait."""
        with self._room:
            return self._is_settled(region)

    def mark_read(self, m_x: int, m_y: int) -> None:
        """Note that a tile was read, and forget what no other needs."""
        with self._room:
            if self._order is not None:
                self._order.mark_read(m_x, m_y)
                self._forget()

    def forget_picture(self, row: int) -> None:
        """Note that the picture of the whole slide needs no row above `row` any more."""
        with self._room:
            self._picture_floor = row
            self._forget()

    def halt(self) -> None:
        """Make reads fail: the run has ended, one way or the other."""
        if self._needs_more():
            self.fail(CancelledError(f"{self._name}: the run that read this scan has stopped; push no more"))

    def _end_run(self) -> None:
        self.halt()
        with self._room:
            self._strips.forget(self._strips.height)
            self._room.notify_all()

    def _needs_more(self) -> bool:
        with self._room:
            return self._order is None or self._order.head is not None

    def _is_settled(self, region: Region) -> bool:
        ended = self._finished or self._failure is not None
        return ended or region[1] < self._strips.floor or self._strips.has(region)

    def _forget(self) -> None:
        if self._order is not None:
            self._strips.forget(min(self._order.floor, self._picture_floor))
            self._room.notify_all()

    def _wake(self, pushed: Region | None) -> None:
        """Wake those whose region is complete; `None` wakes everybody."""
        for want in list(self._wants):
            if pushed is None or (_touch(want.region, pushed) and self._is_settled(want.region)):
                self._wants.remove(want)
                want.settled.set()
        if pushed is None:
            self._room.notify_all()

    def _wait_for_room(self, y: int, end: float, timeout_seconds: float) -> None:
        while True:
            self._refuse_pushes()
            if self._has_room(y, self._strips.floor):
                return
            self._refuse_deadlock(y)
            if not self._room.wait(end - time.monotonic()) and time.monotonic() >= end:
                raise PushTimeoutError(
                    f"{self._name}: no room for row {y} within {timeout_seconds:g} s, with "
                    f"{self._strips.held_bytes // MIB} MiB waiting for a run to read them; start the run in "
                    "another thread, push more slowly, or raise max_bytes"
                )

    def _has_room(self, y: int, floor: int) -> bool:
        """Return whether row `y` may be stored while rows from `floor` on are needed.

        The rows that the next tiles need have their room to themselves: those far ahead cannot shut them out.
        """
        new, ahead = self._strips.count_new_bytes(y), floor + self._window.rows
        if not new or y < ahead:
            return True
        return self._strips.count_held_bytes(ahead) + new <= self._max_bytes - self._window.held_bytes

    def _refuse_pushes(self) -> None:
        if self._failure:
            raise _repeat(self._failure)
        if self._finished:
            raise SlideError(f"{self._name}: pixels were pushed after finish, expected before")

    def _refuse_deadlock(self, y: int) -> None:
        """Refuse pixels for which room would be made only by pixels that come after them."""
        head = self._order.head if self._order else None
        if self._order is None or head is None or self._strips.has(head):
            return
        # a picture trails the tiles, and will follow without new pixels
        if not self._has_room(y, max(self._strips.floor, self._order.floor - self._window.lag)):
            raise SlideError(
                f"{self._name}: no room for row {y}: the run waits for columns {head[0]} to {head[2]} of "
                f"rows {head[1]} to {head[3]}, and {self._strips.held_bytes // MIB} MiB of others are held; "
                f"push more in order, or raise max_bytes ({self._max_bytes // MIB} MiB)"
            )


def _repeat(failure: SlideError | CancelledError) -> SlideError | CancelledError:
    """Return a new error that says the same: one that several threads raise would keep all their frames."""
    return type(failure)(str(failure))


def _touch(one: Region, other: Region) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
