"""Stops what a caller has cancelled, between two steps of it."""

from __future__ import annotations

from threading import Event

from histoseg.errors import CancelledError


def check_cancel(cancel: Event | None, doing: str) -> None:
    """Do nothing, unless `cancel` was set.

    Args:
        cancel: Set from any thread; `None` where nobody can cancel.
        doing: What was going on, for the message.

    Raises:
        CancelledError: `cancel` was set.
    """
    if cancel is not None and cancel.is_set():
        raise CancelledError(f"cancelled while {doing}")
