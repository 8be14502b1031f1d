"""From what a caller names to what a run needs: slide, truth and region of interest opened, tiles planned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from histoseg.cancel import check_cancel
from histoseg.errors import OptionError, SlideError
from histoseg.live import LiveSlide, open_reader
from histoseg.options import RunOptions, check_options
from histoseg.outputs.dicomseg import check_dicom
from histoseg.planning import plan_run, scale_slide
from histoseg.roi import Roi, open_roi
from histoseg.slide import FileSlide, ScaledSlide, Slide, open_slide
from histoseg.tissue import TissueMask
from histoseg.truth import Truth, open_truth

if TYPE_CHECKING:
    from histoseg.engine import Plan, TileReader
    from histoseg.session import Session


@dataclass(frozen=True)
class OpenRun:
    """What one run has open."""

    slide: ScaledSlide
    reader: TileReader
    """Reads the slide's tiles."""
    options: RunOptions
    """Those asked for, as far as the slide can have them."""
    roi: Roi | None
    truth: Truth | None
    tissue: TissueMask | None
    plan: Plan


@contextmanager
def open_run(
    slide: str | Path | Slide,
    session: Session,
    options: RunOptions,
    *,
    truth: str | Path | None = None,
    roi: str | Path | None = None,
    picture: bool = False,
    cancel: Event | None = None,
) -> Iterator[OpenRun]:
    """Open and plan a run, and close what was opened here.

    Args:
        slide: A file that OpenSlide reads, or an open slide, which stays open.
        session: The model.
        options: See `RunOptions`.
        truth: A mask or annotations to score against.
        roi: A mask or annotations that decide which tiles run.
        picture: Whether an overview is drawn while tiles are read.
        cancel: Once it is set, opening stops.

    Raises:
        HistosegError: As of `segment_slide`.
    """
    check_options(options, session)
    check_cancel(cancel, "the slide was opened")
    with ExitStack() as stack:
        opened = _enter_slide(stack, slide, session)
        if options.dicom_seg:
            check_dicom(opened)
        options = _settle_options(opened, options)
        scaled = scale_slide(opened, session, options)
        l0_size = opened.level_sizes[0]
        area = stack.enter_context(open_roi(Path(roi), scaled.scale, l0_size)) if roi else None
        reference = (
            stack.enter_context(open_truth(Path(truth), session.card, scaled.scale, l0_size))
            if truth
            else None
        )
        tissue, plan = plan_run(scaled, session, options, area, truth=reference, cancel=cancel)
        reader = stack.enter_context(open_reader(scaled, plan, picture=picture, cancel=cancel))
        yield OpenRun(scaled, reader, options, area, reference, tissue, plan)


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


def _settle_options(slide: Slide, options: RunOptions) -> RunOptions:
    """Return the options that a slide can have: tissue is found on the whole of it."""
    if not isinstance(slide, LiveSlide):
        return options
    if options.max_memory is not None:
        raise OptionError(
            "max_memory cuts a slide into panels that are run one after the other, which a live slide cannot "
            "be; bound its pixels with LiveSlide(max_bytes=...)"
        )
    return replace(options, tissue=False)
