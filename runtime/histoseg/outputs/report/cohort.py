"""`index.html`: the slides of a run over many, as one table that sorts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from histoseg.outputs.report.markup import (
    Html,
    build_page,
    isolate,
    join,
    name_image,
    read_asset,
    tag,
    write_page,
)
from histoseg.outputs.report.page import show_header
from histoseg.outputs.report.picture import encode_jpeg
from histoseg.outputs.report.words import say_number, say_score, say_seconds, say_share

THUMBNAIL_PX = 192
PAGE_NAME = "report.html"
RESEARCH_ONLY = "Research use only. Not for diagnosis."


@dataclass(frozen=True)
class CohortEntry:
    """One slide of a run over many."""

    name: str
    folder: str
    """Where its results lie, seen from the page's folder."""
    report: dict[str, Any] | None = None
    """What its `report.json` holds; `None` where it failed."""
    failure: str | None = None
    """Why it has no report."""
    thumbnail: bytes | None = None
    """JPEG."""
    note: str | None = None
    """What a person should know before trusting the figures."""
    stopped: bool = False
    """The run ended before the slide did, which is no failure of the slide."""


_Figure = tuple[str | float, str]
"""What to sort by, which is empty where nothing is known, and what to show."""
_NOTHING: _Figure = ("", "\u2013")


class _Column(NamedTuple):
    title: str
    figures: list[_Figure]
    """One for each slide."""


def read_thumbnail(overlay: Path) -> bytes | None:
    """Return `overlay.png` of a result as a small JPEG; `None` where it cannot be read."""
    import cv2

    try:
        data = np.fromfile(overlay, np.uint8)
    except OSError:
        return None
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if bgr is None:
        return None
    height, width = bgr.shape[:2]
    factor = max(1.0, max(width, height) / THUMBNAIL_PX)
    size = max(1, round(width / factor)), max(1, round(height / factor))
    return encode_jpeg(np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)[..., ::-1], np.uint8))


def write_index(path: Path, entries: Sequence[CohortEntry]) -> None:
    """Write the page of a cohort.

    Raises:
        OutputError: The file cannot be written.
    """
    write_page(path, build_index(entries))


def build_index(entries: Sequence[CohortEntry]) -> str:
    """Return the page of a cohort; the same entries give the same text."""
    stopped = sum(entry.stopped for entry in entries)
    counts = {"failed": sum(entry.report is None for entry in entries) - stopped, "stopped": stopped}
    title = f"{len(entries)} slide{'s' * (len(entries) != 1)}"
    title += "".join(f", {count} {what}" for what, count in counts.items() if count)
    scroll = {"class": "scroll card slides", "tabindex": 0, "role": "group", "aria-label": "Slides"}
    parts = (
        show_header(title, RESEARCH_ONLY),
        tag("main", None, tag("div", scroll, _show_slides(entries))),
        tag("footer", None, RESEARCH_ONLY),
    )
    style, script = read_asset("page.css"), read_asset("cohort.js")
    return build_page(f"{title} \u2013 histoseg", join(parts), style=style, script=script)


def _show_slides(entries: Sequence[CohortEntry]) -> Html:
    columns = [
        _Column("Status", [_say_status(entry) for entry in entries]),
        *_iter_areas(entries),
        *_iter_dices(entries),
        _Column("Time", [_say_time(entry) for entry in entries]),
    ]
    kinds = [None, *["number"] * (len(columns) - 1)]
    head = [
        tag("th", {"scope": "col", "class": kind}, column.title)
        for kind, column in zip(kinds, columns, strict=True)
    ]
    body = (
        tag("tr", None, _name_row(entry), *(
            tag("td", {"class": kind, "data-value": column.figures[row][0]}, column.figures[row][1])
            for kind, column in zip(kinds, columns, strict=True)
        ))
        for row, entry in enumerate(entries)
    )  # fmt: skip
    return tag(
        "table",
        None,
        tag("caption", None, "Slides of this run"),
        tag("thead", None, tag("tr", None, tag("th", {"scope": "col"}, "Slide"), *head)),
        tag("tbody", None, *body),
    )


def _name_row(entry: CohortEntry) -> Html:
    return tag("th", {"scope": "row", "data-value": entry.name}, _show_slide(entry))


def _show_slide(entry: CohortEntry) -> Html:
    picture: Html | str = ""
    if entry.thumbnail is not None:
        picture = tag("img", {"src": name_image("image/jpeg", entry.thumbnail), "alt": "", "loading": "lazy"})
    inside = tag("span", {"class": "thumb"}, picture), isolate(entry.name)
    if entry.report is None:
        reason = tag("span", {"class": "reason"}, entry.failure or "no result")
        return tag("span", {"class": "slide"}, inside[0], tag("span", None, inside[1], reason))
    address = f"{quote(os.fsencode(entry.folder))}/{PAGE_NAME}"
    if entry.note:
        inside = inside[0], tag("span", None, inside[1], tag("span", {"class": "reason"}, entry.note))
    return tag("a", {"class": "slide", "href": address}, *inside)


def _say_status(entry: CohortEntry) -> _Figure:
    if entry.stopped:
        return "stopped", "\u2013 Stopped"
    if entry.report is None:
        return "failed", tag("span", {"class": "failed"}, "\u2715 Failed")
    return "done", "\u2713 Done"


def _say_time(entry: CohortEntry) -> _Figure:
    if entry.report is None:
        return _NOTHING
    seconds = entry.report["seconds"]["total"]
    return seconds, say_seconds(seconds)


def _iter_areas(entries: Sequence[CohortEntry]) -> Iterator[_Column]:
    """Yield two columns for each class: its area, and its share."""
    for name in _list_classes(entries):
        yield _Column(f"{name}, mm\u00b2", [_say_area(entry, name) for entry in entries])
        yield _Column(f"{name}, %", [_say_share(entry, name) for entry in entries])


def _iter_dices(entries: Sequence[CohortEntry]) -> Iterator[_Column]:
    """Yield a column for each class, if any slide has a truth."""
    if any(entry.report and entry.report.get("score") for entry in entries):
        for name in _list_classes(entries):
            yield _Column(f"Dice, {name}", [_say_dice(entry, name) for entry in entries])


def _say_area(entry: CohortEntry, name: str) -> _Figure:
    found = _find_class(entry.report, name)
    return (found["area_mm2"], say_number(found["area_mm2"])) if found else _NOTHING


def _say_share(entry: CohortEntry, name: str) -> _Figure:
    found = _find_class(entry.report, name)
    total = sum(each["pixels"] for each in entry.report["classes"]) if entry.report else 0
    return (found["pixels"] / total, say_share(found["pixels"], total)) if found and total else _NOTHING


def _say_dice(entry: CohortEntry, name: str) -> _Figure:
    found = _find_class(entry.report and entry.report.get("score"), name)
    if found is None:
        return _NOTHING
    return "" if found["dice"] is None else found["dice"], say_score(found["dice"])


def _list_classes(entries: Sequence[CohortEntry]) -> list[str]:
    """Return the classes of all reports, backgrounds aside, in the order in which they come."""
    names = (
        each["name"]
        for entry in entries
        if entry.report
        for each in entry.report["classes"]
        if each["name"] != entry.report["model"]["background"]
    )
    return list(dict.fromkeys(names))


def _find_class(document: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Return what a report, or its score, says of a class."""
    return next((each for each in (document or {}).get("classes", ()) if each["name"] == name), None)
