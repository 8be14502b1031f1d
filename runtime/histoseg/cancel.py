"""Stops what a caller has cancelled, or gave a deadline, between two steps of it."""

from __future__ import annotations

import time
from threading import Event

from histoseg.errors import CancelledError, DeadlineError


class Stop(Event):
    """Whether one run is to stop: its caller cancelled it, its time is over, or what ran it was closed.

    An event, so that it goes wherever a caller's own does. Setting it touches no event of the caller's. Safe
    from several threads.
    """

    def __init__(self, cancel: Event | None = None, seconds: float | None = None) -> None:
        """Begin to count the time.

        Args:
            cancel: The caller's.
            seconds: From now on until the deadline.
        """
        super().__init__()
        self._cancel = cancel
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def is_set(self) -> bool:
        """Return whether to stop, for whichever reason."""
        return super().is_set() or (self._cancel is not None and self._cancel.is_set()) or self.is_late()

    def is_late(self) -> bool:
        """Return whether the deadline has passed."""
        return self._end is not None and time.monotonic() >= self._end


def check_cancel(cancel: Event | None, doing: str) -> None:
    """Do nothing, unless `cancel` was set.

    Args:
        cancel: Set from any thread; `None` where nobody can cancel.
        doing: What was going on, for the message.

    Raises:
        CancelledError: `cancel` was set.
        DeadlineError: It is a `Stop` whose deadline has passed.
    """
    if cancel is not None and cancel.is_set():
        raise name_stop(cancel, f"while {doing}")


def name_stop(cancel: Event, when: str) -> CancelledError:
    """Return the error that tells why `cancel` is set; `when` ends its message."""
    if isinstance(cancel, Stop) and cancel.is_late():
        return DeadlineError(f"the deadline of {cancel.seconds:g} s passed {when}; allow more time")
    return CancelledError(f"cancelled {when}")
