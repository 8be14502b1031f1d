"""The lines that a terminal shows while slides run: which words, and how they fit its width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from histoseg.progress import Pace, RunProgress

# Cells of a line: the least, and the most that still helps. Beside a bar a name keeps more than the least.
NAME_CELLS, BAR_CELLS = (8, 40), (6, 40)
NAME_BESIDE_BAR = 12
# What follows a line's name and bar, left to right, with its colour.
PARTS = {"count": "green", "tiles": "", "mm2": "", "left": "cyan", "limit": "yellow"}
# What a narrow terminal keeps: the first of these that fit, then the bar.
MATTERS = ("count", "left", "tiles", "limit", "mm2")
LIMITS = {
    "read": "reading limits",
    "infer": "model limits",
    "blend": "blending limits",
    "write": "writing limits",
}


def show_text(text: str, encoding: str = "utf-8") -> str:
    """Return text from outside in one line that any terminal prints as it is: the rest becomes escapes."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return safe.encode(encoding, "backslashreplace").decode(encoding)


@dataclass(frozen=True)
class Line:
    """One line of progress: a slide's, or that of all."""

    name: str
    parts: Mapping[str, str]
    """Texts of `PARTS`; those that are missing are empty."""
    share: float | None = None
    """That is done, 0 to 1; `None` while it is unknown."""


@dataclass(frozen=True)
class Running:
    """A slide that runs."""

    name: str
    heard: float
    """When its pace was measured, in seconds of the view's clock."""
    pace: Pace | None = None

    @property
    def share(self) -> float:
        """Of its tiles that is done, 0 to 1."""
        return self.pace.now.done / max(1, self.pace.now.known) if self.pace else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Return seconds until its tiles are done; `None` while nothing is known."""
        left = self.pace.seconds_left if self.pace else None
        return None if left is None else max(0.0, left - (now - self.heard))

    def hear(self, progress: RunProgress, now: float) -> Running:
        """Return the slide after its next progress."""
        pace = self.pace.follow(progress) if self.pace else Pace.begin(progress)
        return replace(self, heard=now, pace=pace)


def describe_slide(slide: Running, now: float) -> Line:
    """Return the line of a slide that runs."""
    if slide.pace is None:
        return Line(slide.name, {"count": "starting"})
    pace, progress = slide.pace, slide.pace.now
    parts = {
        "count": f"{progress.done:>{len(str(progress.known))}}/{progress.known}",
        "tiles": _format_speed(pace.tiles_per_second, "tiles/s"),
        "mm2": _format_speed(pace.mm2_per_second, "mm2/s"),
        "left": format_left(slide.seconds_left(now)) if progress.done < progress.known else "finishing",
        "limit": LIMITS.get(progress.limit or "", ""),
    }
    return Line(slide.name, parts, slide.share)


def _format_speed(speed: float | None, unit: str) -> str:
    if speed is None:
        return ""
    digits = 2 if speed < 9.995 else 1 if speed < 99.95 else 0
    return f"{speed:4.{digits}f} {unit}"


def format_left(seconds: float | None) -> str:
    """Return hours, minutes and seconds in words of the line; nothing for `None`."""
    if seconds is None:
        return ""
    minutes, second = divmod(round(seconds), 60)
    hours = f"{minutes // 60}:" if minutes >= 60 else ""
    return f"{hours}{minutes % 60:02}:{second:02} left"


def lay_out(lines: Sequence[Line], width: int, *, ascii_only: bool = False) -> Table:
    """Return lines below each other, each in one line of at most `width` cells, at least 1."""
    sizes = {part: max((cell_len(line.parts.get(part, "")) for line in lines), default=0) for part in PARTS}
    parts, room = _choose_parts(sizes, width)
    name_size, bar_size = _share_room(max((cell_len(line.name) for line in lines), default=0), room)
    table = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(width=name_size, no_wrap=True)
    if bar_size:
        table.add_column(width=bar_size, no_wrap=True)
    for part in parts:
        table.add_column(
            width=sizes[part], no_wrap=True, style=PARTS[part], justify="left" if part == "limit" else "right"
        )
    for line in lines:
        bar = [_draw_bar(line.share, bar_size)] if bar_size else []
        texts = [Text(line.parts.get(part, "")) for part in parts]
        table.add_row(Text(shorten(line.name, name_size, ascii_only=ascii_only)), *bar, *texts)
    return table


def _choose_parts(sizes: Mapping[str, int], width: int) -> tuple[list[str], int]:
    """Return which parts fit beside the shortest name, left to right, and the cells that name and bar get."""
    chosen, room = [], width
    for part in (part for part in MATTERS if sizes[part]):
        if room - sizes[part] - 1 < NAME_CELLS[0]:
            break
        chosen.append(part)
        room -= sizes[part] + 1
    return [part for part in PARTS if part in chosen], room


def _share_room(name: int, room: int) -> tuple[int, int]:
    """Return the cells of names and bars: the name comes first."""
    name = min(max(name, 1), NAME_CELLS[1])
    if room < min(name, NAME_BESIDE_BAR) + 1 + BAR_CELLS[0]:
        return min(name, room), 0
    name = min(name, room - 1 - BAR_CELLS[0])
    return name, min(room - name - 1, BAR_CELLS[1])


def _draw_bar(share: float | None, size: int) -> ProgressBar:
    return ProgressBar(total=None if share is None else 1.0, completed=share or 0.0, width=size)


def shorten(text: str, size: int, *, ascii_only: bool = False) -> str:
    """Return a text in at most `size` cells, less its middle if need be: names differ at their ends."""
    if cell_len(text) <= size:
        return text
    mark = ".." if ascii_only else "…"
    if size <= len(mark):
        return mark[:size]
    head = (size - len(mark)) // 2
    tail = text[-(size - len(mark) - head) :]
    while cell_len(tail) > size - len(mark) - head:
        tail = tail[1:]
    return set_cell_size(text, head).rstrip() + mark + tail


def tabulate_failures(failures: Sequence[tuple[str, str]], slides: int, encoding: str) -> Table:
    """Return slides that failed and why, none of it cut."""
    title = Text(f"{len(failures)} of {slides} slides failed", style="bold red")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("slide", overflow="fold", max_width=NAME_CELLS[1])
    table.add_column("reason", overflow="fold")
    for failure in failures:
        table.add_row(*(Text(show_text(text, encoding)) for text in failure))
    return table
