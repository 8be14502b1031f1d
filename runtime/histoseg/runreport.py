"""What a report says of a run before it has begun: model, slide, tiles, tissue."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import histoseg
from histoseg.slide import FileSlide

if TYPE_CHECKING:
    from histoseg.opening import OpenRun
    from histoseg.session import Session


def describe_run(
    run: OpenRun, session: Session, *, truth: str | Path | None = None, roi: str | Path | None = None
) -> dict[str, Any]:
    """Return what is known of a run once it is planned, ready for JSON.

    Args:
        run: What it has open.
        session: The model.
        truth: What it is scored against.
        roi: Where it runs.
    """
    given = {"truth": truth, "roi": roi}
    return {
        "histoseg": histoseg.__version__,
        "model": _describe_model(session),
        "provider": session.provider,
        "placement": session.placement,
        "slide": _describe_slide(run, session),
        "spacing_um_px": math.sqrt(math.prod(run.slide.scale.spacing_um_px)),
        "size_px": list(run.slide.m_size),
        "tiles": _describe_tiles(run),
        "tissue": run.tissue.report() if run.tissue else None,
        "intended_use": session.card.intended_use,
        "options": asdict(run.options) | {name: str(path) if path else None for name, path in given.items()},
    }


def _describe_model(session: Session) -> dict[str, Any]:
    card = session.card
    return {
        "name": session.name,
        "sha256": session.sha256,
        "architecture": card.architecture,
        "precision": card.precision,
        "spacing_um_px": card.spacing_um_px,
        "background": card.class_names[card.background_index],
    }


def _describe_slide(run: OpenRun, session: Session) -> dict[str, Any]:
    slide = run.slide.slide
    return {
        "path": str(slide.path) if isinstance(slide, FileSlide) else slide.name,
        "size_px": list(slide.level_sizes[0]),
        "spacing_um_px": list(slide.spacing_um_px) if slide.spacing_um_px else None,
        "level": run.slide.scale.level,
        "color_profile": slide.color_profile if isinstance(slide, FileSlide) else None,
        "color_space": session.card.input.color_space,
    }


def _describe_tiles(run: OpenRun) -> dict[str, Any]:
    plan, grid = run.plan, run.plan.grid
    return {
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
    }
