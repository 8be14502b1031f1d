"""From a slide, a model and a person's options to what will run."""

from __future__ import annotations

from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from histoseg.cpu import count_cpus
from histoseg.engine import Plan, choose_batch_size
from histoseg.grid import Grid, plan_grid
from histoseg.memory import fit_panels
from histoseg.roi import Roi, choose_tiles
from histoseg.scale import ScaledSlide, plan_scale
from histoseg.tissue import TissueMask, find_tissue

if TYPE_CHECKING:
    from histoseg.arrays import Mask
    from histoseg.card import Blend
    from histoseg.options import RunOptions
    from histoseg.session import Session
    from histoseg.slide import Slide
    from histoseg.truth import Truth

# A slide's readers share the cores with a model on the CPU; a GPU leaves them all.
READERS_BESIDE_CPU, READERS_BESIDE_GPU = 4, 16


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
    return ScaledSlide(slide, scale, card.input.equalization)


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


def plan_run(
    slide: ScaledSlide,
    session: Session,
    options: RunOptions,
    roi: Roi | None = None,
    *,
    truth: Truth | None = None,
    cancel: Event | None = None,
) -> tuple[TissueMask | None, Plan]:
    """Lay the grid, choose the tiles that run, and return the tissue mask if it decided that.

    Args:
        slide: The slide at the model's um/px.
        session: The model.
        options: What a person chose.
        roi: A region of interest, which decides instead of tissue.
        truth: What the run is scored against, which takes memory.
        cancel: Once it is set, planning stops.

    Raises:
        CancelledError: `cancel` was set.
        OptionError: The memory that was allowed is not enough.
        RoiError: Nothing of the slide lies inside the region of interest.
        SlideError: The slide is damaged.
    """
    grid = _lay_grid(slide, session, options)
    tissue = None
    if options.tissue and roi is None:
        tissue = find_tissue(slide.slide, spacing_um_px=slide.scale.l0_spacing_um_px, cancel=cancel)
    plan = Plan(
        grid=grid,
        runs=_choose_runs(grid, tissue, roi, cancel),
        blend=_choose_blend(session, options),
        batch_size=choose_batch_size(session, grid.tile_size, options.batch_size),
        readers=options.readers or _count_readers(session),
    )
    if options.max_memory is not None:
        masks = [mask.footprint for mask in (roi, truth) if mask]
        columns = fit_panels(
            plan,
            session,
            slide.scale,
            max_bytes=options.max_memory,
            masks=masks,
            probabilities=options.probabilities,
        )
        plan = replace(plan, panel_columns=columns)
    return tissue, plan


def _choose_runs(grid: Grid, tissue: TissueMask | None, roi: Roi | None, cancel: Event | None) -> Mask:
    if roi is not None:
        return choose_tiles(grid, roi, cancel=cancel)
    runs = np.ones((grid.y.count, grid.x.count), np.bool_)
    if tissue is not None:
        for tile in grid.iter_tiles():
            runs[tile.row, tile.column] = tissue.touches(tile, grid)
    return runs


def _count_readers(session: Session) -> int:
    on_gpu = session.provider in ("cuda", "tensorrt")
    return min(READERS_BESIDE_GPU if on_gpu else READERS_BESIDE_CPU, count_cpus())
