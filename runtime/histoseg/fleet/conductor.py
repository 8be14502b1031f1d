"""A run over many slides from its first event to its last, wherever the slides run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from histoseg.command import Terminated
from histoseg.fleet.here import Here, Runner
from histoseg.fleet.run import ModelChoice, Order, Outcome
from histoseg.fleet.sources import SlideSource
from histoseg.fleet.summary import Row, build_row, count_statuses, write_summary
from histoseg.fleet.words import explain_enlargement, summarize
from histoseg.outputs.report import CohortEntry, read_thumbnail, write_index

Handle = Callable[[dict[str, Any]], None]
INDEX_NAME = "index.html"
# What the process exits with when a run is stopped.
CODES: dict[type[BaseException], int] = {KeyboardInterrupt: 130, Terminated: 143}


def run_fleet(
    slides: Sequence[SlideSource],
    choice: ModelChoice,
    order: Order,
    handle: Handle,
    *,
    jobs: int = 1,
    dask: str | None = None,
    summary: bool = True,
) -> list[Row]:
    """Run slides and return their rows, in their order.

    Args:
        slides: At least one.
        choice: The model.
        order: What is done to each slide.
        handle: Takes events; `docs/run.md` lists them.
        jobs: Slides at a time on this machine.
        dask: Address of a Dask scheduler, on whose workers the slides run instead.
        summary: Write `summary.csv`, `summary.json` and `index.html` into the output folder.

    Raises:
        HistosegError: The model cannot be opened, no worker can be had, or the summary cannot be written.
        OptionError: An option does not fit the model.
    """
    story = _Story(slides, order, handle, summary=summary)
    with _open_runner(choice, order, min(jobs, len(slides)), dask) as runner:
        facts = {"model": runner.facts.name, "provider": runner.facts.provider}
        handle({"event": "start", "slides": len(slides), **facts, "jobs": runner.jobs})
        try:
            for index, outcome in runner.run(slides, story.tell):
                story.end_slide(index, outcome)
        except BaseException as error:  # what is done is told, whatever ends the run
            story.end(CODES.get(type(error), 1))
            raise
    return story.end()


def _open_runner(choice: ModelChoice, order: Order, jobs: int, dask: str | None) -> Runner:
    if dask is not None:
        from histoseg.fleet.cluster import Cluster

        return Cluster(choice, order, dask)
    if jobs > 1:
        from histoseg.fleet.workers import Workers

        return Workers(choice, order, jobs)
    return Here(choice, order)


class _Story:
    """What has happened so far: told as events, and kept as a summary."""

    def __init__(self, slides: Sequence[SlideSource], order: Order, handle: Handle, *, summary: bool) -> None:
        self._slides, self._out, self._handle, self._summary = slides, order.out, handle, summary
        self._outcomes: list[Outcome | None] = [None] * len(slides)
        self._begin = time.monotonic()

    def tell(self, index: int, event: dict[str, Any]) -> None:
        """Hand on an event of a slide."""
        named = {"event": event["event"], "slide": str(self._slides[index].path)}
        self._handle(named | ({"index": index} if event["event"] == "slide" else {}) | event)

    def end_slide(self, index: int, outcome: Outcome) -> None:
        """Note how a slide ended."""
        self._outcomes[index] = outcome
        slide = self._slides[index]
        row, folder = build_row(slide, outcome), self._out / slide.name
        if outcome.report is None:
            self._handle({"event": "failed", "slide": row["slide"], "reason": row["reason"]})
            return
        if row["status"] == "done" and (note := explain_enlargement(outcome.report)):
            self._handle({"event": "note", "slide": row["slide"], "text": note})
        line = summarize(outcome.report, folder)
        self._handle({"event": row["status"], **row, "folder": str(folder), "line": line})

    def end(self, code: int | None = None) -> list[Row]:
        """Write the summary, say so, and return the rows.

        Args:
            code: What the process will exit with; by the rows when `None`.
        """
        pairs = list(zip(self._slides, self._outcomes, strict=True))
        rows = [build_row(slide, outcome) for slide, outcome in pairs]
        path = None
        if self._summary:
            path = str(write_summary(self._out, rows))
            shown = [self._show(*pair, row) for pair, row in zip(pairs, rows, strict=True)]
            write_index(self._out / INDEX_NAME, shown)
        counts = count_statuses(rows)
        if code is None:
            code = 1 if counts["failed"] else 0
        seconds = round(time.monotonic() - self._begin, 1)
        self._handle({"event": "end", **counts, "seconds": seconds, "code": code, "summary": path})
        return rows

    def _show(self, slide: SlideSource, outcome: Outcome | None, row: Row) -> CohortEntry:
        name, folder = slide.path.name, slide.name
        if outcome is None:
            return CohortEntry(
                name, folder, failure="the run was stopped before this slide ended", stopped=True
            )
        if outcome.report is None:
            return CohortEntry(name, folder, failure=row["reason"])
        thumbnail = read_thumbnail(self._out / folder / "overlay.png")
        return CohortEntry(name, folder, outcome.report, thumbnail=thumbnail, note=row["note"])
