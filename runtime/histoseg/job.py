"""One slide into one folder: plan, run, write, report. The folder appears whole or not at all."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

import histoseg
from histoseg.blend import Band, label_band
from histoseg.card import Blend, ModelCard
from histoseg.cpu import count_cpus
from histoseg.engine import Plan, choose_batch_size, iter_rows
from histoseg.errors import HistosegError, OptionError, OutputError, SlideError
from histoseg.grid import Grid, plan_grid
from histoseg.memory import fit_panels
from histoseg.outputs import LabelSink
from histoseg.outputs.classes import ClassCounts
from histoseg.outputs.labels import LabelPyramid
from histoseg.outputs.overlay import Overlay
from histoseg.panels import join_panels
from histoseg.score import TruthScore
from histoseg.session import Session
from histoseg.slide import FileSlide, ScaledSlide, Slide, open_slide, plan_scale
from histoseg.timing import Stopwatch
from histoseg.tissue import TissueMask, find_tissue
from histoseg.truth import Truth, open_truth

if TYPE_CHECKING:
    from histoseg.arrays import Labels

REPORT_NAME = "report.json"
STAGES = ("read", "infer", "blend", "write")


@dataclass(frozen=True)
class RunOptions:
    """What a person may choose for a run; `None` means what the model's card says."""

    mpp: float | None = None
    """Level-0 um/px, over what the slide states."""
    allow_coarse: bool = False
    blend: Blend | None = None
    overlap_px: int | None = None
    threshold: float | None = None
    tissue: bool = True
    """Skip tiles without tissue."""
    batch_size: int | None = None
    readers: int | None = None
    max_memory: int | None = None
    """Bytes; where the slide's whole width needs more, it is run in panels."""


def segment_slide(
    slide: str | Path | Slide,
    session: Session,
    out: str | Path,
    options: RunOptions | None = None,
    *,
    truth: str | Path | None = None,
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
        on_tiles: Called with tiles done and tiles to do.
        cancel: Once it is set, from any thread, the run stops within one batch.

    Returns:
        What `report.json` holds.

    Raises:
        CancelledError: `cancel` was set.
        OptionError: An option does not fit the model.
        SlideError: The slide cannot be opened or read, or has the wrong um/px.
        TruthError: The truth does not fit.
        ModelError: The model failed.
        OutputError: The results cannot be written.
    """
    clock, options = Stopwatch(), options or RunOptions()
    check_options(options, session)
    with ExitStack() as stack:
        opened: Slide = stack.enter_context(open_slide(slide)) if isinstance(slide, str | Path) else slide
        scaled = scale_slide(opened, session, options)
        reference = _enter_truth(stack, truth, scaled, session) if truth else None
        tissue, plan = plan_run(scaled, session, options)
        folder = stack.enter_context(_output_folder(Path(out) / check_name(opened.name)))
        report = _describe(scaled, session, plan, tissue)
        report["options"] = {**asdict(options), "truth": str(truth) if truth else None}
        # closed before the slide is: readers must be out of it by then
        rows = stack.enter_context(
            closing(iter_rows(scaled, session, plan, clock=clock, on_tiles=on_tiles, cancel=cancel))
        )
        report |= _write(rows, scaled, plan, folder, session.card, reference, options.threshold, clock)
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


def check_options(options: RunOptions, session: Session) -> None:
    """Refuse options that do not fit the model.

    Raises:
        OptionError: The message names the option as the command line does.
    """
    tiling, side = session.card.tiling, min(session.card.patch_size_pixels)
    least, most = 2 * tiling.halo_px, side - tiling.stride_multiple
    if options.overlap_px is not None and not least <= options.overlap_px <= most:
        raise OptionError(
            f"--overlap is {options.overlap_px} px, expected {least} (twice the model's halo) to {most}"
        )
    if options.batch_size and session.batch_size not in (None, options.batch_size):
        raise OptionError(f"--batch is {options.batch_size}, expected {session.batch_size}, the model's own")
    if options.threshold is not None and len(session.card.class_names) != 2:
        raise OptionError(
            f"--threshold is for two classes, but the model has {len(session.card.class_names)} classes"
        )
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise OptionError(f"--threshold is {options.threshold}, expected between 0 and 1")
    if options.mpp is not None and not 0 < options.mpp < math.inf:
        raise OptionError(f"--mpp is {options.mpp}, expected um/px above 0")


def _write(
    rows: Iterator[Iterator[Band]],
    slide: ScaledSlide,
    plan: Plan,
    folder: Path,
    card: ModelCard,
    truth: Truth | None,
    threshold: float | None,
    clock: Stopwatch,
) -> dict[str, Any]:
    """Label finished bands, hand them to every output, and return what the report says of them."""
    threshold = card.output.threshold if threshold is None else threshold
    spacing, background = slide.scale.spacing_um_px, card.background_index
    counts = ClassCounts(card.class_names)
    score = TruthScore(truth, card.class_names, background) if truth else None
    overlay = Overlay(folder / "overlay.png", slide.slide, slide.m_size, card.class_colors, background)
    labels_of = partial(_label, background=background, threshold=threshold, score=score, clock=clock)
    with LabelPyramid(folder / "labels.tif", slide.m_size, spacing, card.class_colors) as pyramid:
        sinks: list[LabelSink] = [pyramid, overlay, counts]
        for m_y, labels in join_panels(map(labels_of, rows), len(plan.panels), folder):
            with clock.time("write"):
                for sink in sinks:
                    sink.add(m_y, labels)
        with clock.time("write"):
            for sink in sinks:
                sink.close()
    scores = {"score": score.report()} if score else {}
    return {"seconds": clock.report(STAGES), "classes": counts.report(spacing), **scores}


def _label(
    parts: Iterator[Band],
    *,
    background: int,
    threshold: float | None,
    score: TruthScore | None,
    clock: Stopwatch,
) -> tuple[int, Labels]:
    """Return the first row and the labels of a band that comes in parts."""
    labels, m_y = [], 0
    for part in parts:
        with clock.time("write"):
            labels.append(label_band(part, background=background, threshold=threshold))
            if score:
                score.add(part, labels[-1])
            m_y = part.m_y
    return m_y, np.concatenate(labels, axis=1)


def _enter_truth(stack: ExitStack, path: str | Path, slide: ScaledSlide, session: Session) -> Truth:
    return stack.enter_context(open_truth(Path(path), session.card, slide.scale, slide.slide.level_sizes[0]))


def scale_slide(slide: Slide, session: Session, options: RunOptions) -> ScaledSlide:
    """Return the slide at the model's um/px.

    Raises:
        SpacingError: The slide states no um/px, or is too coarse for the model.
    """
    card = session.card
    scale = plan_scale(
        slide,
        card.spacing_um_px,
        tolerance=card.spacing_tolerance,
        mpp=options.mpp,
        force=options.allow_coarse,
    )
    return ScaledSlide(slide, scale)


def _lay_grid(slide: ScaledSlide, session: Session, options: RunOptions) -> Grid:
    card = session.card
    overlap = card.tiling.overlap_px if options.overlap_px is None else options.overlap_px
    return plan_grid(
        slide.m_size,
        card.patch_size_pixels,
        overlap=overlap,
        halo=card.tiling.halo_px,
        stride_multiple=card.tiling.stride_multiple,
        crop=_choose_blend(session, options) == "crop",
    )


def _choose_blend(session: Session, options: RunOptions) -> Blend:
    return options.blend or session.card.tiling.blend


def plan_run(slide: ScaledSlide, session: Session, options: RunOptions) -> tuple[TissueMask | None, Plan]:
    """Lay the grid, find tissue if it decides, and return what will run.

    Raises:
        SlideError: The slide is damaged.
    """
    grid = _lay_grid(slide, session, options)
    tissue = find_tissue(slide.slide) if options.tissue else None
    runs = np.ones((grid.y.count, grid.x.count), np.bool_)
    if tissue is not None:
        for tile in grid.iter_tiles():
            runs[tile.row, tile.column] = tissue.touches(tile, grid)
    plan = Plan(
        grid=grid,
        runs=runs,
        blend=_choose_blend(session, options),
        batch_size=choose_batch_size(session, grid.tile_size, options.batch_size),
        readers=options.readers or min(4, count_cpus()),
    )
    if options.max_memory is not None:
        columns = fit_panels(plan, session, slide.scale, max_bytes=options.max_memory)
        plan = replace(plan, panel_columns=columns)
    return tissue, plan


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
        "slide": {
            "path": str(slide.path) if isinstance(slide, FileSlide) else slide.name,
            "size_px": list(slide.level_sizes[0]),
            "spacing_um_px": list(slide.spacing_um_px) if slide.spacing_um_px else None,
            "level": scale.level,
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
        "tissue": {"coverage": tissue.coverage} if tissue else None,
        "intended_use": card.intended_use,
    }


@contextmanager
def _output_folder(final: Path) -> Iterator[Path]:
    """Yield a folder that becomes `final` when the block succeeds and vanishes when it fails."""
    if final.exists() and not (final / REPORT_NAME).is_file():
        raise OutputError(
            f"{final} exists and holds no histoseg result, expected a free name; choose another -o"
        )
    part, old = final.with_name(f".{final.name}.part"), final.with_name(f".{final.name}.old")
    if old.exists() and not final.exists():
        old.rename(final)  # a run was killed between the two renames of `_replace_folder`
    made = _missing_parents(final)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        _replace_folder(part, final, old)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError) and not isinstance(error, HistosegError):
            raise OutputError(
                f"{final}: cannot be written ({error.strerror or error}); choose another -o"
            ) from error
        raise


def _replace_folder(part: Path, final: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    part.replace(final)
    shutil.rmtree(old, ignore_errors=True)


def _missing_parents(path: Path) -> list[Path]:
    """Return the parents that do not exist yet, innermost first."""
    return [folder for folder in path.parents if not folder.exists()]
