"""One slide into one folder: plan, run, write, report. The folder appears whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import histoseg
from histoseg.engine import iter_rows
from histoseg.errors import SlideError
from histoseg.folder import REPORT_NAME, make_folder
from histoseg.labeller import Labeller
from histoseg.live import LiveSlide
from histoseg.opening import OpenRun, open_run
from histoseg.options import RunOptions
from histoseg.outputs.report import write_report
from histoseg.outputs.results import FILE_NAMES, Results
from histoseg.outputs.tissue import write_tissue
from histoseg.panels import join_panels
from histoseg.session import Session
from histoseg.slide import FileSlide, Slide
from histoseg.timing import Stopwatch

if TYPE_CHECKING:
    pass

PAGE_NAME = "report.html"
OUTPUT_NAMES = (*FILE_NAMES, "tissue.png", PAGE_NAME, REPORT_NAME)
STAGES = ("read", "infer", "blend", "write")


def segment_slide(
    slide: str | Path | Slide,
    session: Session,
    out: str | Path,
    options: RunOptions | None = None,
    *,
    truth: str | Path | None = None,
    roi: str | Path | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
    cancel: Event | None = None,
) -> dict[str, Any]:
    """Segment one slide into `out/<name>/` and return its report.

    Args:
        slide: A file that OpenSlide reads, or an open slide, such as an `ArraySlide`, or a `LiveSlide`, whose
            tiles all run, tissue or not.
        session: The model.
        out: Folder for results; it is made when it is missing.
        options: See `RunOptions`; what the model's card says when `None`.
        truth: A mask or annotations to score against.
        roi: A mask or annotations outside of which all is background and nothing counts; it decides which
            tiles run, instead of tissue.
        on_tiles: Called with tiles done and tiles to do.
        cancel: Once it is set, from any thread, the run stops within one batch, or one block of an overview.

    Returns:
        What `report.json` holds.

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
    clock = Stopwatch()
    opening = open_run(
        slide, session, options or RunOptions(), truth=truth, roi=roi, picture=True, cancel=cancel
    )
    with opening as run, make_folder(Path(out) / check_name(run.slide.slide.name), OUTPUT_NAMES) as folder:
        report = _describe(run, session)
        given = {"truth": truth, "roi": roi}
        report["options"] = asdict(run.options) | {
            name: str(path) if path else None for name, path in given.items()
        }
        labeller = Labeller(
            session.card,
            clock,
            run.plan.panels,
            threshold=run.options.threshold,
            roi=run.roi,
            truth=run.truth,
        )
        bands = iter_rows(run.reader, session, run.plan, clock=clock, on_tiles=on_tiles, cancel=cancel)
        with closing(bands):  # before the slide is: readers must be out of it by then
            joined = join_panels(map(labeller.label, bands), len(run.plan.panels), folder)
            results = Results(folder, run.slide, session.card, run.options, clock=clock, cancel=cancel)
            with results:
                results.write(joined)
        if run.tissue is not None:
            write_tissue(folder / "tissue.png", run.tissue.mask)
        report |= labeller.report(run.slide.scale.spacing_um_px) | results.report()
        if isinstance(run.slide.slide, LiveSlide):
            report["slide"]["gap_px"] = run.slide.slide.gap_px or 0
        report["seconds"] = clock.report(STAGES)
        mask = run.tissue.mask if run.tissue else None
        write_report(folder / PAGE_NAME, report, session.card, results.glance(), mask)
        (folder / REPORT_NAME).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def check_name(name: str) -> str:
    """Return a slide's name, which becomes a folder's, if it stays inside the output folder.

    Raises:
        SlideError: It is empty, or names another place.
    """
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise SlideError(f"the slide's name is {name!r}, expected one that can name a folder")
    return name


def _describe(run: OpenRun, session: Session) -> dict[str, Any]:
    card, scaled, plan, tissue = session.card, run.slide, run.plan, run.tissue
    slide, scale, grid = scaled.slide, scaled.scale, plan.grid
    return {
        "histoseg": histoseg.__version__,
        "model": {
            "name": session.name,
            "sha256": session.sha256,
            "architecture": card.architecture,
            "precision": card.precision,
            "spacing_um_px": card.spacing_um_px,
            "background": card.class_names[card.background_index],
        },
        "provider": session.provider,
        "placement": session.placement,
        "slide": {
            "path": str(slide.path) if isinstance(slide, FileSlide) else slide.name,
            "size_px": list(slide.level_sizes[0]),
            "spacing_um_px": list(slide.spacing_um_px) if slide.spacing_um_px else None,
            "level": scale.level,
            "color_profile": slide.color_profile if isinstance(slide, FileSlide) else None,
            "color_space": card.input.color_space,
        },
        "spacing_um_px": math.sqrt(scale.spacing_um_px[0] * scale.spacing_um_px[1]),
        "size_px": list(scaled.m_size),
        "tiles": {
            "total": grid.count,
            "columns": grid.x.count,
            "rows": grid.y.count,
            "run": int(plan.runs.sum()),
            "size_px": list(grid.tile_size),
            "step_px": grid.x.step,
            "halo_px": grid.x.halo,
            "blend": plan.blend,
            "batch_size": plan.batch_size,
            "panels": len(plan.panels),
        },
        "tissue": tissue.report() if tissue else None,
        "intended_use": card.intended_use,
    }
