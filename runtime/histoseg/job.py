"""One slide into one folder: plan, run, write, report. The folder appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from histoseg.engine import iter_rows
from histoseg.errors import SlideError
from histoseg.folder import REPORT_NAME, HeldFolder, hold_folder
from histoseg.identity import find_finished, hash_files, identify_run, name_parts, read_report
from histoseg.journal import DAMAGE, ORDER, Journal, name_changes
from histoseg.labeller import Labeller
from histoseg.live import LiveSlide
from histoseg.opening import OpenRun, open_run
from histoseg.options import RunOptions
from histoseg.outputs.report import write_report
from histoseg.outputs.results import FILE_NAMES, Results
from histoseg.outputs.tissue import write_tissue
from histoseg.panels import join_panels
from histoseg.progress import STAGES, ProgressMeter, RunProgress
from histoseg.providers import import_onnxruntime
from histoseg.resuming import KeptRows
from histoseg.runreport import describe_run
from histoseg.session import Session
from histoseg.slide import Slide
from histoseg.timing import Stopwatch

if TYPE_CHECKING:
    from histoseg.blend import Band
    from histoseg.outputs.report import Glance

PAGE_NAME = "report.html"
JOURNAL_NAME = ".journal"
OUTPUT_NAMES = (*FILE_NAMES, "tissue.png", PAGE_NAME, REPORT_NAME)


def segment_slide(  # noqa: PLR0913
    slide: str | Path | Slide,
    session: Session,
    out: str | Path,
    options: RunOptions | None = None,
    *,
    truth: str | Path | None = None,
    roi: str | Path | None = None,
    overwrite: bool | str = False,
    on_progress: Callable[[RunProgress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    cancel: Event | None = None,
) -> dict[str, Any]:
    """Segment one slide into `out/<name>/` and return its report.

    A result that is there already, of the very same model, slide and options, is returned as it is. A run of
    a file keeps a journal beside its result: what was killed, cancelled or ran out of disk goes on where it
    stopped, and ends with the same bytes.

    Args:
        slide: A file that OpenSlide reads, or an open slide, such as an `ArraySlide`, or a `LiveSlide`, whose
            tiles all run, tissue or not.
        session: The model.
        out: Folder for results; it is made when it is missing.
        options: See `RunOptions`; what the model's card says when `None`.
        truth: A mask or annotations to score against.
        roi: A mask or annotations outside of which all is background and nothing counts; it decides which
            tiles run, instead of tissue.
        overwrite: Run from the beginning, whatever there is. A word instead of `True` names the order to do
            so: what an earlier call with the same word has done stands.
        on_progress: Called at the start and after each batch, by this thread.
        on_note: Called with a sentence when the run goes on where another stopped, or begins afresh because
            something has changed.
        cancel: Once it is set, from any thread, the run stops within one batch, or one block of an overview.

    Returns:
        What `report.json` holds; and `skipped`, if nothing had to be done.

    Raises:
        CancelledError: `cancel` was set.
        DeadlineError: It is a `Stop` whose deadline has passed.
        OptionError: An option does not fit the model.
        SlideError: The slide cannot be opened or read, or has the wrong um/px.
        TruthError: The truth does not fit.
        RoiError: The region of interest does not fit.
        ModelError: The model failed.
        OutputError: The results cannot be written.
    """
    clock, options, note = Stopwatch(), options or RunOptions(), on_note or (lambda _: None)
    order = (uuid4().hex if overwrite is True else overwrite) or None
    identity = identify_run(slide, session, options, truth=truth, roi=roi, order=order)
    if identity is not None:
        found = find_finished(Path(out) / check_name(identity["name"]), identity)
        if found is not None:
            return found | {"skipped": True}
    opening = open_run(slide, session, options, truth=truth, roi=roi, picture=True, cancel=cancel)
    with opening as run, _enter_folder(run, Path(out)) as held:
        if identity is not None and (found := _find_under_lock(held, identity)):
            return found | {"skipped": True}
        held.empty(keep=JOURNAL_NAME if identity is not None else None)
        with _open_journal(held, run, identity, note) as journal:
            job = _Job(run, session, held.part, journal, clock, cancel)
            report = describe_run(run, session, truth=truth, roi=roi) | {"run": identity}
            report |= job.write(on_progress or (lambda _: None), note)
            _finish(held.part, report, job, session)
        held.publish()
    return report


def check_name(name: str) -> str:
    """Return a slide's name, which becomes a folder's, if it stays inside the output folder.

    Raises:
        SlideError: It is empty, or names another place.
    """
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise SlideError(f"the slide's name is {name!r}, expected one that can name a folder")
    return name


def _enter_folder(run: OpenRun, out: Path) -> AbstractContextManager[HeldFolder]:
    return hold_folder(out / check_name(run.slide.slide.name), OUTPUT_NAMES, journal=JOURNAL_NAME)


def _find_under_lock(held: HeldFolder, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the report of a result that another run has finished meanwhile, or all but given its name."""
    found = find_finished(held.final, identity)
    if found is None and (found := find_finished(held.part, identity, verify=True)):
        held.publish()
    return found


@contextmanager
def _open_journal(
    held: HeldFolder, run: OpenRun, identity: Mapping[str, Any] | None, on_note: Callable[[str], None]
) -> Iterator[Journal | None]:
    """Yield the journal of a run that can be known again, and say why it begins afresh, if it does."""
    if identity is None:
        yield None
        return
    # what an earlier run took as its limit decides how its bands are cut; builds differ in their last bits
    ours = {"max_memory": run.options.max_memory, "onnxruntime": import_onnxruntime().__version__}
    layout = {"panel_columns": run.plan.panel_columns}
    with Journal(held.part / JOURNAL_NAME, {**identity, **ours}, layout) as journal:
        before = read_report(held.final) if journal.is_new else None
        changed = name_changes(before["run"], identity) if before else ()
        if identity[ORDER] is None:
            _note_changes(held.final, journal.changed, changed, on_note)
        yield journal


def _note_changes(
    final: Path, of_journal: Sequence[str], of_result: Sequence[str], on_note: Callable[[str], None]
) -> None:
    """Say why what is there is of no use."""
    if of_journal == (DAMAGE,):
        on_note(f"{final}: what an interrupted run had done is damaged; begins afresh")
    elif of_journal:
        on_note(f"{final}: begins afresh, since the interrupted run was another ({name_parts(of_journal)})")
    elif of_result:
        on_note(f"{final}: replaces a result that was of another run ({name_parts(of_result)})")


def _finish(folder: Path, report: dict[str, Any], job: _Job, session: Session) -> None:
    """Write the page and, last of all files, the report."""
    if job.gap_px is not None:
        report["slide"]["gap_px"] = job.gap_px
    write_report(folder / PAGE_NAME, report, session.card, job.glance(), job.mask)
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    report["files"] = hash_files(folder, names)
    (folder / REPORT_NAME).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


class _Job:
    """What one run writes."""

    def __init__(
        self,
        run: OpenRun,
        session: Session,
        folder: Path,
        journal: Journal | None,
        clock: Stopwatch,
        cancel: Event | None,
    ) -> None:
        self._run, self._session, self._folder, self._journal = run, session, folder, journal
        self._clock, self._cancel = clock, cancel
        # an earlier run's panels stand: what fits into memory is measured, and not the same each time
        self._plan = replace(run.plan, **journal.layout) if journal else run.plan
        self._labeller = Labeller(
            session.card,
            clock,
            self._plan.panels,
            threshold=run.options.threshold,
            roi=run.roi,
            truth=run.truth,
            shares=run.options.probabilities,
        )
        self._results = Results(folder, run.slide, session, run.options, clock=clock, cancel=cancel)
        self.mask = run.tissue.mask if run.tissue else None
        """Where tissue is; `None` where nobody looked."""

    def write(
        self, on_progress: Callable[[RunProgress], None], on_note: Callable[[str], None]
    ) -> dict[str, Any]:
        """Write the files of the labels, and the tissue; return what is to be reported of them."""
        kept = KeptRows(
            self._journal, self._labeller, lambda done: self._run_rest(done, on_progress, on_note)
        )
        with self._results, closing(kept.iter_rows()) as rows:  # before the slide is: readers must be out
            self._results.write(join_panels(rows, len(self._plan.panels), self._folder))
        if self.mask is not None:
            write_tissue(self._folder / "tissue.png", self.mask)
        report = self._labeller.report(self._run.slide.scale.spacing_um_px) | self._results.report()
        return report | {"resumed_bands": kept.resumed, "seconds": self._clock.report(STAGES)}

    @property
    def gap_px(self) -> int | None:
        """Pixels of a live slide that never came; `None` of one that is a whole file or array."""
        slide = self._run.slide.slide
        return slide.gap_px or 0 if isinstance(slide, LiveSlide) else None

    def glance(self) -> Glance:
        """Return slide and labels at a size to look at; complete once all is written."""
        return self._results.glance()

    def _run_rest(
        self, done: int, on_progress: Callable[[RunProgress], None], on_note: Callable[[str], None]
    ) -> Generator[Iterator[Band]]:
        plan = replace(self._plan, done=done)
        bands = len(plan.panels) * plan.grid.y.count
        if done:
            on_note(f"{self._run.slide.slide.name}: goes on after {done} of {bands} bands, which are done")
        meter = ProgressMeter(plan, self._run.slide.scale.spacing_um_px, self._clock)
        return iter_rows(
            self._run.reader,
            self._session,
            plan,
            clock=self._clock,
            on_tiles=lambda done, known: on_progress(meter.measure(done, known)),
            cancel=self._cancel,
        )
