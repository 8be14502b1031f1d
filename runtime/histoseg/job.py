"""One slide into one folder: plan, run, write, report. The folder appears whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import histoseg
from histoseg.cancel import check_cancel
from histoseg.engine import Plan, iter_rows
from histoseg.errors import SlideError
from histoseg.folder import REPORT_NAME, make_folder
from histoseg.labeller import Labeller
from histoseg.options import RunOptions, check_options
from histoseg.outputs import LabelSink
from histoseg.outputs.labels import LabelPyramid
from histoseg.outputs.overlay import Overlay
from histoseg.outputs.tissue import write_tissue
from histoseg.panels import join_panels
from histoseg.planning import plan_run, scale_slide
from histoseg.roi import Roi, open_roi
from histoseg.session import Session
from histoseg.slide import FileSlide, ScaledSlide, Slide, open_slide
from histoseg.timing import Stopwatch
from histoseg.tissue import TissueMask
from histoseg.truth import Truth, open_truth

if TYPE_CHECKING:
    from histoseg.arrays import Labels

OUTPUT_NAMES = ("labels.tif", "overlay.png", "tissue.png", REPORT_NAME)
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
        slide: A file that OpenSlide reads, or an open slide, such as an `ArraySlide`.
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
        OptionError: An option does not fit the model.
        SlideError: The slide cannot be opened or read, or has the wrong um/px.
        TruthError: The truth does not fit.
        RoiError: The region of interest does not fit.
        ModelError: The model failed.
        OutputError: The results cannot be written.
    """
    clock, options = Stopwatch(), options or RunOptions()
    check_options(options, session)
    with ExitStack() as stack:
        scaled = scale_slide(_enter_slide(stack, slide, session), session, options)
        area = _enter_roi(stack, roi, scaled) if roi else None
        reference = _enter_truth(stack, truth, scaled, session) if truth else None
        tissue, plan = plan_run(scaled, session, options, area, truth=reference, cancel=cancel)
        folder = stack.enter_context(make_folder(Path(out) / check_name(scaled.slide.name), OUTPUT_NAMES))
        report = _describe(scaled, session, plan, tissue)
        given = {"truth": truth, "roi": roi}
        report["options"] = asdict(options) | {
            name: str(path) if path else None for name, path in given.items()
        }
        # closed before the slide is: readers must be out of it by then
        rows = stack.enter_context(
            closing(iter_rows(scaled, session, plan, clock=clock, on_tiles=on_tiles, cancel=cancel))
        )
        labeller = Labeller(
            session.card, clock, plan.panels, threshold=options.threshold, roi=area, truth=reference
        )
        joined = join_panels(map(labeller.label, rows), len(plan.panels), folder)
        _write(joined, scaled, session, folder, clock, cancel)
        if tissue is not None:
            write_tissue(folder / "tissue.png", tissue.mask)
        report |= {"seconds": clock.report(STAGES)} | labeller.report(scaled.scale.spacing_um_px)
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


def _write(
    rows: Iterator[tuple[int, Labels]],
    slide: ScaledSlide,
    session: Session,
    folder: Path,
    clock: Stopwatch,
    cancel: Event | None,
) -> None:
    """Hand labels to every output."""
    card, size, spacing = session.card, slide.m_size, slide.scale.spacing_um_px
    overlay = Overlay(
        folder / "overlay.png", slide.slide, size, card.class_colors, card.background_index, cancel=cancel
    )
    with LabelPyramid(folder / "labels.tif", size, spacing, card.class_colors) as pyramid:
        sinks: list[LabelSink] = [pyramid, overlay]
        for m_y, labels in rows:
            check_cancel(cancel, "labels were written")
            with clock.time("write"):
                for sink in sinks:
                    sink.add(m_y, labels)
        with clock.time("write"):
            for sink in sinks:
                check_cancel(cancel, "labels were written")
                sink.close()


def _enter_slide(stack: ExitStack, slide: str | Path | Slide, session: Session) -> Slide:
    wanted = session.card.input.color_space
    if isinstance(slide, str | Path):
        return stack.enter_context(open_slide(slide, color_space=wanted))
    if isinstance(slide, FileSlide) and slide.color_space != wanted:
        raise SlideError(
            f"{slide.path}: was opened with color_space '{slide.color_space}', expected '{wanted}' from the "
            f"model's card; open it with open_slide(path, color_space='{wanted}')"
        )
    return slide


def _enter_roi(stack: ExitStack, path: str | Path, slide: ScaledSlide) -> Roi:
    return stack.enter_context(open_roi(Path(path), slide.scale, slide.slide.level_sizes[0]))


def _enter_truth(stack: ExitStack, path: str | Path, slide: ScaledSlide, session: Session) -> Truth:
    return stack.enter_context(open_truth(Path(path), session.card, slide.scale, slide.slide.level_sizes[0]))


def _describe(scaled: ScaledSlide, session: Session, plan: Plan, tissue: TissueMask | None) -> dict[str, Any]:
    card, slide, scale, grid = session.card, scaled.slide, scaled.scale, plan.grid
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
