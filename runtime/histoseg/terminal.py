"""What a run shows: lines that move on a terminal, plain lines elsewhere, JSON for machines.

Every view eats the same events, plain dicts; `docs/run.md` lists them. Names and reasons come from outside:
they are shown as text, never read as markup or as control sequences.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from pathlib import PurePath
from typing import Any, NoReturn, Protocol, TextIO

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from histoseg.progress import RunProgress
from histoseg.terminallines import (
    Line,
    Running,
    describe_slide,
    format_left,
    lay_out,
    show_text,
    tabulate_failures,
)

Event = Mapping[str, Any]

PROGRAM = "histoseg-run"
# Of a terminal's lines, and of one slide's tiles in JSON.
REFRESHES_PER_SECOND = 10
# A terminal shows ^C where the cursor is: with no cells left it would break the line that is taken away next.
INTERRUPT_CELLS = 2
# Of a tiles event.
PROGRESS = [entry.name for entry in fields(RunProgress)]


class View(Protocol):
    """Shows a run to somebody."""

    def handle(self, event: Event) -> None:
        """Show one event. Once nobody reads any more what is written, the process exits with 1."""
        ...


@contextmanager
def open_view(*, as_json: bool = False, quiet: bool = False) -> Iterator[View]:
    """Yield the view that fits where the output goes; however the block is left, the terminal is clean.

    Args:
        as_json: Stdout gets one JSON object for each event and nothing else; what is printed goes to stderr.
        quiet: Only failures are shown. Without effect on JSON.
    """
    if as_json:
        view = JsonView(sys.stdout)
        with redirect_stdout(sys.stderr):
            yield view
    elif quiet or not _can_draw():
        yield PlainView(quiet=quiet)
    else:
        # FORCE_COLOR alone would make a terminal of any file
        console = Console(stderr=True, force_terminal=True, force_jupyter=False, highlight=False)
        with TerminalView(console) as terminal:
            yield terminal


def _can_draw() -> bool:
    return bool(sys.stderr and sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal)


def name_slide(event: Event) -> str:
    """Return the file name of an event's slide, as it is shown."""
    return show_text(PurePath(event["slide"]).name or event["slide"])


class JsonView:
    """One JSON object a line for each event, at once; of a slide's tiles, ten a second and the last."""

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._shown: dict[str, float] = {}
        self._held: dict[str, Event] = {}

    def handle(self, event: Event) -> None:
        """Write one event, or hold it back until it is known whether it is a slide's last tile."""
        slide = event.get("slide")
        if event["event"] == "tiles":
            self._handle_tiles(event["slide"], event)
            return
        for held in [slide] if slide is not None else list(self._held):
            self._release(held)
        if event["event"] in ("done", "skipped", "failed"):
            self._shown.pop(event["slide"], None)
        self._write(event)

    def _handle_tiles(self, slide: str, event: Event) -> None:
        now = self._clock()
        soon = self._shown.get(slide, -math.inf) + 1 / REFRESHES_PER_SECOND
        self._held[slide] = event
        if now >= soon or event["done"] == event["known"]:
            self._shown[slide] = now
            self._release(slide)

    def _release(self, slide: str) -> None:
        if slide in self._held:
            self._write(self._held.pop(slide))

    def _write(self, event: Event) -> None:
        write_line(encode_event(event), self._stream)


def encode_event(event: Event) -> str:
    """Return an event as one line of ASCII JSON; numbers that are not finite become `null`."""
    return json.dumps(_replace_infinite(event), allow_nan=False)


def _replace_infinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _replace_infinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_infinite(inner) for inner in value]
    return value


def write_line(text: str, stream: TextIO | None) -> None:
    """Write a line and flush; exit with 1 when nobody reads the stream any more."""
    if stream is None:
        return
    try:
        click.echo(text, file=stream)
    except BrokenPipeError:
        _leave(stream)


def _leave(stream: TextIO) -> NoReturn:
    """Exit without a word; what the stream still holds goes nowhere, or its last flush would complain.

    `BrokenPipeError` itself would look like an `OSError` of the slide whose progress was shown.
    Source: https://docs.python.org/3/library/signal.html#note-on-sigpipe
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    raise SystemExit(1)


def _print_plainly(text: str, error: bool) -> None:
    write_line(text, sys.stderr if error else sys.stdout)


class PlainView:
    """One line for each slide that ends: on stdout, or on stderr where it failed."""

    def __init__(self, *, quiet: bool = False, write: Callable[[str, bool], None] = _print_plainly) -> None:
        """Write lines.

        Args:
            quiet: Only failures.
            write: Takes a line, and whether it is for stderr.
        """
        self._quiet = quiet
        self._write = write
        self._slides = 0

    def handle(self, event: Event) -> None:
        """Write what a person must know of an event, if anything."""
        kind = event["event"]
        if kind == "start":
            self._slides = event["slides"]
        elif kind == "failed":
            self._write(f"{PROGRAM}: error: {_say_failure(event)}", True)
        elif kind == "note" and not self._quiet:
            name = f"{name_slide(event)}: " if event["slide"] is not None else ""
            self._write(f"{PROGRAM}: note: {name}{show_text(event['text'])}", True)
        elif kind in ("done", "skipped") and not self._quiet:
            self._write(show_text(event["line"]), False)
        elif kind == "end" and self._slides > 1 and not self._quiet:
            self._write(_say_end(event, self._slides), False)


def _say_failure(event: Event) -> str:
    """Return a reason after the slide as it was given."""
    reason, slide = show_text(event["reason"]), show_text(event["slide"])
    return reason if reason.startswith(f"{slide}: ") else f"{slide}: {reason}"


def _say_end(event: Event, slides: int) -> str:
    kinds = ("done", "skipped", "failed", "stopped")
    counts = [f"{event[kind]} {kind}" for kind in kinds if event.get(kind)]
    line = f"{slides} slides: {', '.join(counts) or 'none done'}, {event['seconds']:.1f} s"
    return line + (f" -> {show_text(event['summary'])}" if event.get("summary") else "")


class TerminalView:
    """A line for each slide that runs, and one for all of several, redrawn on stderr; ended slides above.

    Redrawing has a thread of its own. It only ever reads values that are replaced as a whole.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        """Draw on a console; nothing is shown before the start event."""
        self._console = console
        self._clock = clock
        self._plain = PlainView(write=self._print)
        self._slides = 0
        self._begun = clock()
        self._running: dict[str, Running] = {}
        self._ended = Counter[str]()
        self._failures: list[tuple[str, str]] = []
        self._live = Live(
            get_renderable=self._draw,
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=_stdout_is_terminal(),
        )

    def __enter__(self) -> TerminalView:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the lines away and show the cursor again."""
        try:
            self._live.stop()
        finally:  # a second Ctrl-C may come meanwhile
            self._console.show_cursor(True)

    def handle(self, event: Event) -> None:
        """Show one event."""
        self._note(event["event"], event)
        self._plain.handle(event)
        if event["event"] == "end" and self._failures and self._slides > 1:
            self._console.print(tabulate_failures(self._failures, self._slides, self._console.encoding))

    def _note(self, kind: str, event: Event) -> None:
        if kind == "start":
            self._slides, self._begun = event["slides"], self._clock()
            self._live.start()
        elif kind == "slide":
            name = show_text(name_slide(event), self._console.encoding)
            self._running[event["slide"]] = Running(name, self._clock())
        elif kind == "tiles" and (running := self._running.get(event["slide"])):
            progress = RunProgress(**{name: event[name] for name in PROGRESS})
            self._running[event["slide"]] = running.hear(progress, self._clock())
        elif kind in ("done", "skipped", "failed"):
            self._ended[kind] += 1
            self._running.pop(event["slide"], None)
            if kind == "failed":
                self._failures.append((name_slide(event), show_text(event["reason"])))
        elif kind == "end":
            self._live.stop()

    def _print(self, text: str, error: bool) -> None:
        if error or _stdout_is_terminal():
            text = show_text(text, self._console.encoding)
            self._console.print(Text(text), soft_wrap=True)  # the terminal breaks it, and copies it whole
        else:
            _print_plainly(text, error)

    def _draw(self) -> Table:
        running, now = list(self._running.values()), self._clock()
        room = max(1, self._console.height - 3)  # for the total, what is hidden, and the cursor
        lines = [describe_slide(slide, now) for slide in running[:room]]
        if hidden := len(running) - len(lines):
            lines.append(Line(f"and {hidden} more", {}, 0.0))
        if self._slides > 1:
            lines.append(self._describe_all(running, now))
        width = max(1, self._console.width - INTERRUPT_CELLS)
        return lay_out(lines, width, ascii_only=self._console.options.ascii_only)

    def _describe_all(self, running: Sequence[Running], now: float) -> Line:
        ended, failed = self._ended.total(), self._ended["failed"]
        share = sum(slide.share for slide in running)
        parts = {
            "count": f"{ended}/{self._slides}",
            "left": format_left(self._estimate_left(running, share, now)),
            "limit": f"{failed} failed" if failed else "",
        }
        return Line("all slides", parts, (ended + share) / self._slides)

    def _estimate_left(self, running: Sequence[Running], share: float, now: float) -> float | None:
        """Return seconds until all slides are done, as if they were alike; never less than one that runs."""
        worked = self._ended["done"] + share  # the others took no time worth speaking of
        if not worked:
            return None
        alike = (now - self._begun) * (self._slides - self._ended.total() - share) / worked
        return max([alike, *(slide.seconds_left(now) or 0.0 for slide in running)])


def _stdout_is_terminal() -> bool:
    return bool(sys.stdout and sys.stdout.isatty())
