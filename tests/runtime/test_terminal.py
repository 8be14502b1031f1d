from __future__ import annotations

import io
import json
import math
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from histoseg.progress import RunProgress
from histoseg.terminal import JsonView, PlainView, encode_event
from histoseg.terminallines import (
    PARTS,
    Line,
    Running,
    describe_slide,
    format_left,
    lay_out,
    shorten,
    show_text,
    tabulate_failures,
)

ODD_NAMES = [
    "[bold]x[-].svs",
    "[red]\x1b[31mred\x1b]0;title\x07.tif",
    "two\nlines\r.ndpi",
    ":smile: [link=x].tif",
]


def start(slides: int) -> dict[str, Any]:
    return {"event": "start", "slides": slides, "model": "nuclei", "provider": "cpu", "jobs": 1}


def begin(slide: str, index: int = 0) -> dict[str, Any]:
    return {"event": "slide", "slide": slide, "index": index}


def tiles(slide: str, done: int, known: int, seconds: float, limit: str | None = "infer") -> dict[str, Any]:
    measured = {"done": done, "known": known, "seconds": seconds, "mm2": done * 0.01, "limit": limit}
    return {"event": "tiles", "slide": slide, **measured}


def done(slide: str, line: str) -> dict[str, Any]:
    return {"event": "done", "slide": slide, "status": "done", "folder": "out", "line": line}


def fail(slide: str, reason: str) -> dict[str, Any]:
    return {"event": "failed", "slide": slide, "reason": reason}


def end(done: int = 0, failed: int = 0, stopped: int = 0) -> dict[str, Any]:
    counts = {"done": done, "skipped": 0, "failed": failed, "stopped": stopped}
    return {"event": "end", **counts, "seconds": 2.5, "code": int(failed > 0), "summary": "out/summary.csv"}


# text from outside


@given(st.text(), st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_any_text_becomes_one_printable_line_and_stays(text: str, encoding: str) -> None:
    shown = show_text(text, encoding)
    assert shown.isprintable()
    assert shown.encode(encoding).decode(encoding) == shown
    assert show_text(shown, encoding) == shown
    if text.isprintable() and text.isascii():
        assert shown == text


@given(st.text(), st.integers(1, 40), st.booleans())
def test_a_shortened_name_fits_and_keeps_both_ends(text: str, size: int, ascii_only: bool) -> None:
    name = show_text(text)
    short = shorten(name, size, ascii_only=ascii_only)
    assert cell_len(short) <= size
    if cell_len(name) <= size:
        assert short == name
    elif name.isascii() and size >= 6:
        head, tail = short.split(".." if ascii_only else "…", 1) if ascii_only else short.split("…")
        assert name.startswith(head)
        assert name.endswith(tail)
        assert tail


# lines


def render(lines: list[Line], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(lay_out(lines, width))
    return console.file.getvalue().removesuffix("\n").split("\n")


MEASURED = st.builds(
    RunProgress,
    done=st.integers(0, 10**6),
    known=st.integers(0, 10**6),
    seconds=st.floats(0, 1e6),
    mm2=st.floats(0, 1e5),
    limit=st.sampled_from([None, "read", "infer", "blend", "write"]),
)
SLIDES = st.builds(
    lambda name, first, last: Running(show_text(name), 0.0).hear(first, 1.0).hear(last, 2.0),
    st.text(max_size=80),
    MEASURED,
    MEASURED,
)


@given(st.lists(SLIDES, min_size=1, max_size=5), st.integers(1, 200))
def test_every_slide_is_one_line_that_fits(slides: list[Running], width: int) -> None:
    shown = render([describe_slide(slide, 3.0) for slide in slides], width)
    assert len(shown) == len(slides)
    assert max(map(cell_len, shown)) <= width


def test_what_matters_most_stays_longest() -> None:
    progress = RunProgress(done=0, known=5678, seconds=0.0, mm2=0.0, limit=None)
    after = RunProgress(done=1234, known=5678, seconds=100.0, mm2=12.0, limit="blend")
    slide = Running("a-long-name-of-a-slide.svs", 0.0).hear(progress, 0.0).hear(after, 0.0)
    words = {
        "count": "1234/5678",
        "left": "06:00 left",
        "tiles": "12.3 tiles/s",
        "limit": "blending limits",
        "mm2": "0.12 mm2/s",
    }
    assert (
        describe_slide(slide, 0.0).parts.items() >= {k: v for k, v in words.items() if k != "tiles"}.items()
    )
    present = [
        {part for part, word in words.items() if word in render([describe_slide(slide, 0.0)], width)[0]}
        for width in range(1, 121)
    ]
    order = ["count", "left", "tiles", "limit", "mm2"]
    assert present[39] == {"count", "left"}
    assert present[59] == {"count", "left", "tiles", "limit"}
    for shown in present:
        assert shown == set(order[: len(shown)])
    assert present[77] == set(PARTS)
    wide = render([describe_slide(slide, 0.0)], 120)[0]
    assert "a-long-name-of-a-slide.svs" in wide
    assert "━" in wide


def test_time_left_runs_down_between_two_words_of_a_run() -> None:
    measured = [RunProgress(done, 100, seconds, 0.0, None) for done, seconds in ((0, 0.0), (50, 50.0))]
    slide = Running("a", 0.0).hear(measured[0], 10.0).hear(measured[1], 60.0)
    assert [slide.seconds_left(now) for now in (60.0, 80.0, 110.0, 500.0)] == [50, 30, 0, 0]
    assert [format_left(left) for left in (None, 9.6, 3599.0, 3661.0)] == [
        "",
        "00:10 left",
        "59:59 left",
        "1:01:01 left",
    ]


def test_after_the_last_tile_a_slide_is_finishing() -> None:
    slide = Running("a", 0.0)
    assert describe_slide(slide, 0.0).parts["count"] == "starting"
    assert describe_slide(slide, 0.0).share is None
    whole = slide.hear(RunProgress(7, 7, 3.0, 0.1, "write"), 0.0)
    assert describe_slide(whole, 0.0).parts["left"] == "finishing"
    assert whole.share == 1


@given(st.text(alphabet="abc [/]\x1b\n", min_size=1, max_size=300), st.integers(40, 200))
def test_no_reason_is_cut(reason: str, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(tabulate_failures([("b.svs", reason)], 3, "utf-8"))
    _, body = re.split("─+", console.file.getvalue())
    assert re.sub(r"\s", "", body) == "b.svs" + show_text(reason).replace(" ", "")


# plain


def show_plainly(*events: dict[str, Any], quiet: bool = False) -> list[tuple[str, bool]]:
    written = list[tuple[str, bool]]()
    view = PlainView(quiet=quiet, write=lambda text, error: written.append((text, error)))
    for event in events:
        view.handle(event)
    return written


def test_elsewhere_a_slide_is_one_line_when_it_ends() -> None:
    one = [start(1), begin("in/a.svs"), tiles("in/a.svs", 1, 2, 0.1), done("in/a.svs", "a.svs: fine"), end(1)]
    assert show_plainly(*one) == [("a.svs: fine", False)]
    assert show_plainly(*one, quiet=True) == []
    skipped = {"event": "skipped", "slide": "in/a.svs", "folder": "out/a", "line": "a.svs: was done"}
    assert show_plainly(start(1), skipped) == [("a.svs: was done", False)]


def test_failures_and_notes_go_to_stderr_and_name_the_slide_once() -> None:
    note = {"event": "note", "slide": "in/a.svs", "text": "starts afresh"}
    several = [start(11), note, {**note, "slide": None}, fail("in/a.svs", "in/a.svs: no such file")]
    several += [fail("in/b.svs", "out of memory"), end(failed=2, stopped=9)]
    assert show_plainly(*several) == [
        ("histoseg-run: note: a.svs: starts afresh", True),
        ("histoseg-run: note: starts afresh", True),
        ("histoseg-run: error: in/a.svs: no such file", True),
        ("histoseg-run: error: in/b.svs: out of memory", True),
        ("11 slides: 2 failed, 9 stopped, 2.5 s -> out/summary.csv", False),
    ]
    assert [text for text, _ in show_plainly(*several, quiet=True)] == [
        "histoseg-run: error: in/a.svs: no such file",
        "histoseg-run: error: in/b.svs: out of memory",
    ]


@given(st.text(min_size=1), st.text())
def test_nothing_from_outside_breaks_a_line(name: str, text: str) -> None:
    note = {"event": "note", "slide": name, "text": text}
    for line, _ in show_plainly(start(2), note, fail(name, text), done(name, text)):
        assert line.isprintable()


# JSON

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def without_infinite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [without_infinite(inner) for inner in value]
    return {k: without_infinite(v) for k, v in value.items()} if isinstance(value, dict) else value


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@given(st.dictionaries(st.text(), ANY_JSON, max_size=5))
def test_any_event_is_one_ascii_line_that_reads_back(values: dict[str, Any]) -> None:
    line = encode_event({"event": "x", **values})
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line, parse_constant=refuse) == without_infinite({"event": "x", **values})


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 0.3)), max_size=60))
def test_tiles_come_ten_times_a_second_and_the_last_always(steps: list[tuple[str, float]]) -> None:
    stream, now, count = io.StringIO(), 0.0, dict.fromkeys("ab", 0)
    times: dict[str, list[float]] = {"a": [], "b": []}
    view = JsonView(stream, lambda: now)
    for slide, seconds in steps:
        now += seconds
        count[slide] += 1
        before = stream.tell()
        view.handle(tiles(slide, count[slide], 1000, now))
        if stream.tell() > before:
            times[slide].append(now)
    for slide in "ab":
        view.handle(done(slide, "x"))
        assert all(b - a >= 0.1 - 1e-9 for a, b in zip(times[slide], times[slide][1:], strict=False))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    for slide in "ab":
        mine = [event for event in events if event["slide"] == slide]
        assert mine[-1]["event"] == "done"
        assert [event["done"] for event in mine[-2:-1]] == ([count[slide]] if count[slide] else [])


def test_a_slides_last_tile_is_told_at_once() -> None:
    stream = io.StringIO()
    view = JsonView(stream, lambda: 0.0)
    for number in range(5):
        view.handle(tiles("a", number, 4, 0.0))
    assert [json.loads(line)["done"] for line in stream.getvalue().splitlines()] == [0, 4]


# in a process of its own, with or without a terminal

DRIVER = """
import fcntl, json, os, signal, sys, termios
import click
from histoseg.command import run_command
from histoseg.terminal import open_view

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
if os.isatty(2):
    fcntl.ioctl(2, termios.TIOCSCTTY, 0)  # Ctrl-C of this terminal is for this process

@click.command(name="histoseg-run")
@click.option("--json", "as_json", is_flag=True)
@click.option("--quiet", is_flag=True)
def command(as_json, quiet):
    code = 0
    with open_view(as_json=as_json, quiet=quiet) as view:
        print("opened") if as_json else None
        for line in sys.stdin:
            event = json.loads(line)
            view.handle(event)
            code = event.get("code", 0)
    return code

run_command(command)
"""


def start_driver(*flags: str, **streams: Any) -> subprocess.Popen[bytes]:
    hidden = (
        "COLUMNS",
        "LINES",
        "NO_COLOR",
        "FORCE_COLOR",
        "TTY_COMPATIBLE",
        "TTY_INTERACTIVE",
        "PYTHONPATH",
    )
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **streams.pop("env", {})}
    command = [sys.executable, "-c", DRIVER, *flags]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, env=environment, start_new_session=True, **streams
    )


def feed(process: subprocess.Popen[bytes], *events: dict[str, Any]) -> None:
    assert process.stdin
    for event in events:
        process.stdin.write(json.dumps(event).encode() + b"\n")
    process.stdin.flush()


def test_without_a_terminal_there_are_lines_alone() -> None:
    process = start_driver(stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"FORCE_COLOR": "1"})
    feed(process, start(2), begin("a"), tiles("a", 1, 2, 1.0), done("a", "a: fine"), fail("b", "b: bad"))
    feed(process, end(1, 1))
    assert process.communicate(timeout=60) == (
        b"a: fine\n2 slides: 1 done, 1 failed, 2.5 s -> out/summary.csv\n",
        b"histoseg-run: error: b: bad\n",
    )
    assert process.returncode == 1


def test_json_has_stdout_for_itself() -> None:
    process = start_driver("--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    events = [start(1), begin("a\n\udce9"), tiles("a\n\udce9", 2, 2, 1.0), done("a\n\udce9", "µ"), end(1)]
    feed(process, *events)
    stdout, stderr = process.communicate(timeout=60)
    assert [json.loads(line) for line in stdout.splitlines()] == events
    assert (stderr, process.returncode) == (b"opened\n", 0)


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_reader_that_goes_away_ends_the_run_without_a_word(flags: tuple[str, ...]) -> None:
    process = start_driver(*flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    feed(process, start(2), begin("a"), done("a", "a: fine"))
    assert process.stdout.readline()
    process.stdout.close()
    feed(process, tiles("b", 1, 2, 1.0), done("b", "b: fine"), end(2))
    process.stdin.close()
    assert process.stderr.read() in (b"", b"opened\n")
    assert process.wait(timeout=60) == 1


class Screen:
    """What a person sees: a terminal that knows just the controls that may come, and refuses others."""

    CONTROLS = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|\r|\n|\x08|[^\x00-\x1f\x7f]")

    def __init__(
        self, columns: int, rows: int = 24, *, stdout: Any = None, flags: tuple[str, ...] = (), **env: str
    ):
        pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
        self.columns, self.cursor, self.raw = columns, True, ""
        self.lines, self.x, self.y = [""], 0, 0
        self.master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = start_driver(*flags, stdout=stdout or terminal, stderr=terminal, env=env)
        os.close(terminal)

    def read_until(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not seen():
            assert time.monotonic() < deadline, self.lines
            if select.select([self.master], [], [], 0.1)[0]:
                self.take(os.read(self.master, 65536).decode())

    def read_to_end(self, *, interrupted: bool = False) -> int:
        if self.process.stdin and not interrupted:
            self.process.stdin.close()
        code = self.process.wait(timeout=60)
        while select.select([self.master], [], [], 0.1)[0]:
            try:
                self.take(os.read(self.master, 65536).decode())
            except OSError:  # Linux's word for the end
                break
        os.close(self.master)
        return code

    def take(self, text: str) -> None:
        self.raw += text
        position = 0
        while position < len(text):
            match = self.CONTROLS.match(text, position)
            assert match, f"a control that no terminal view should send: {text[position : position + 20]!r}"
            position = match.end()
            self.apply(match[0], match[1], match[2])

    def apply(self, text: str, numbers: str | None, control: str | None) -> None:
        if control:
            known = {("?25", "l"), ("?25", "h"), ("2", "K")}
            assert control in "mA" or (numbers, control) in known, text
            self.cursor = {"l": False, "h": True}.get(control, self.cursor)
            self.y -= int(numbers or 1) if control == "A" else 0
            if control == "K":
                self.lines[self.y] = ""
        elif text == "\r":
            self.x = 0
        elif text == "\n":
            self.move_down()
        else:
            self.write(text)

    def move_down(self) -> None:
        self.y += 1
        self.lines += [""] * (self.y + 1 - len(self.lines))

    def write(self, text: str) -> None:
        if self.x + cell_len(text) > self.columns:
            self.x = 0
            self.move_down()
        line = self.lines[self.y].ljust(self.x)
        self.lines[self.y] = line[: self.x] + text + line[self.x + 1 :]
        self.x += cell_len(text)

    @property
    def shown(self) -> list[str]:
        return [line.rstrip() for line in self.lines if line.strip()]

    def shows(self, *words: str) -> Callable[[], bool]:
        return lambda: all(word in "\n".join(self.shown) for word in words)


@pytest.fixture
def open_screen() -> Iterator[Callable[..., Screen]]:
    opened: list[Screen] = []

    def create(*arguments: Any, **options: Any) -> Screen:
        opened.append(Screen(*arguments, **options))
        return opened[-1]

    yield create
    for screen in opened:
        if screen.process.poll() is None:
            screen.process.send_signal(signal.SIGKILL)
            screen.process.wait()


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_one_slide_is_one_line_that_is_gone_at_the_end(open_screen: Callable, columns: int) -> None:
    screen, slide = open_screen(columns), "in/a-rather-long-name-of-a-slide-that-is-here.svs"
    feed(screen.process, start(1), begin(slide))
    screen.read_until(screen.shows("starting"))
    assert not screen.cursor
    feed(screen.process, tiles(slide, 0, 96, 1.0), tiles(slide, 48, 96, 13.0))
    screen.read_until(screen.shows("48/96", "4.00 tiles/s", "00:1", " left", "model limits"))
    screen.read_until(lambda: len(screen.shown) == 1)
    assert len(screen.shown[0]) < columns - 1
    assert ("0.04 mm2/s" in screen.shown[0]) == (columns > 60)
    assert ("a-rather-long-name-…ide-that-is-here.svs" in screen.shown[0]) == (columns >= 120)
    feed(screen.process, done(slide, "a-rather.svs: fine"), end(1))
    assert screen.read_to_end() == 0
    assert screen.shown == ["a-rather.svs: fine"]
    assert screen.cursor


def test_several_slides_are_a_line_each_one_for_all_and_a_table_of_failures(open_screen: Callable) -> None:
    screen, reason = (
        open_screen(80),
        "the file ends after 12 bytes, expected 4,000 as its header says; copy it again",
    )
    feed(
        screen.process,
        start(4),
        begin("a"),
        begin("b", 1),
        tiles("a", 0, 10, 0.0),
        tiles("b", 3, 30, 1.0, "read"),
    )
    screen.read_until(screen.shows(" 0/10", " 3/30", "reading limits", "all slides", "0/4"))
    assert len(screen.shown) == 3
    feed(screen.process, fail("b", reason), done("a", "a: fine"), begin("c", 2))
    screen.read_until(screen.shows("2/4", "1 failed", "starting", "a: fine"))
    feed(screen.process, done("c", "c: fine"), done("d", "d: fine"), end(3, 1))
    assert screen.read_to_end() == 1
    assert screen.shown[:5] == [
        f"histoseg-run: error: b: {reason}"[:80],
        f"histoseg-run: error: b: {reason}"[80:],
        "a: fine",
        "c: fine",
        "d: fine",
    ]
    assert screen.shown[5:7] == [
        "4 slides: 3 done, 1 failed, 2.5 s -> out/summary.csv",
        "1 of 4 slides failed",
    ]
    assert " ".join(" ".join(screen.shown[9:]).split()) == f"b {reason}"
    assert screen.cursor


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_text(open_screen: Callable, name: str) -> None:
    screen = open_screen(120)
    feed(screen.process, start(2), begin(name), tiles(name, 1, 2, 1.0))
    screen.read_until(screen.shows(show_text(name), "1/2"))
    feed(screen.process, fail(name, f"{name}: bad"), done(name, f"{name}: fine"), end(1, 1))
    assert screen.read_to_end() == 1
    assert sum(show_text(name) in line for line in screen.shown) >= 3
    assert "\n".join(screen.shown).isascii() or "─" in "\n".join(screen.shown)


@pytest.mark.parametrize("slides", [1, 5])
def test_ctrl_c_leaves_a_clean_terminal(open_screen: Callable, slides: int) -> None:
    screen, name = open_screen(80), "a-rather-long-name-of-a-slide-that-is-here.svs"
    feed(screen.process, start(slides))
    for index in range(min(slides, 3)):
        slide = f"{index}-{name}"
        feed(screen.process, begin(slide), tiles(slide, 0, 96, 1.0), tiles(slide, 48, 96, 13.0, "blend"))
    screen.read_until(screen.shows("blending limits", *(["all slides"] if slides > 1 else [])))
    os.write(screen.master, b"\x03")
    assert screen.read_to_end(interrupted=True) == 130
    assert screen.shown == ["histoseg-run: interrupted; the same command goes on where it stopped"]
    assert screen.cursor


def test_lines_for_a_file_go_there_while_the_terminal_shows_progress(
    open_screen: Callable, tmp_path: Path
) -> None:
    with (tmp_path / "lines.txt").open("wb") as lines:
        screen = open_screen(80, stdout=lines)
    feed(screen.process, start(2), begin("a"), tiles("a", 1, 2, 1.0))
    screen.read_until(screen.shows("1/2", "all slides"))
    feed(screen.process, done("a", "a: fine"), done("b", "b: fine"), end(2))
    assert screen.read_to_end() == 0
    assert screen.shown == []
    assert (tmp_path / "lines.txt").read_text().splitlines()[:2] == ["a: fine", "b: fine"]


@pytest.mark.parametrize(("flags", "env"), [((), {"TERM": "dumb"}), (("--quiet",), {}), (("--json",), {})])
def test_nothing_moves_where_it_should_not(open_screen: Callable, flags: tuple[str, ...], env: dict) -> None:
    screen = open_screen(80, flags=flags, **env)
    feed(screen.process, start(1), begin("a"), tiles("a", 1, 2, 1.0), fail("a", "a: bad"), end(0, 1))
    assert screen.read_to_end() == 1
    assert "\x1b" not in screen.raw
    assert "a: bad" in screen.raw


def test_without_colour_and_with_little_room_it_is_still_a_line(open_screen: Callable) -> None:
    screen = open_screen(40, rows=4, NO_COLOR="1")
    feed(screen.process, start(9), *(begin(f"{index}.svs") for index in range(5)))
    screen.read_until(screen.shows("0.svs", "starting", "and 4 more", "all slides"))
    assert len(screen.shown) == 3
    feed(screen.process, end())
    assert screen.read_to_end() == 0
    assert not re.search(r"\x1b\[[\d;]*3\d", screen.raw)
