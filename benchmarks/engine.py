"""Speed of a whole run against bare `session.run` on the same batches, alternating in one process.

    python benchmarks/engine.py [--model model.onnx] [--slide slide.svs] [--rounds 5]

The whole run reads real slide pixels, blends, labels and writes `labels.tif`; the bare one feeds the same
tiles from memory. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from histoseg.blend import label_band
from histoseg.demo import write_demo_slide
from histoseg.engine import Plan, iter_rows
from histoseg.job import RunOptions, plan_run, scale_slide
from histoseg.models import default_model
from histoseg.outputs.labels import LabelPyramid
from histoseg.session import Session, open_session
from histoseg.slide import ScaledSlide, open_slide
from histoseg.timing import Stopwatch


def run_whole(
    slide: ScaledSlide, session: Session, plan: Plan, folder: Path
) -> tuple[float, dict[str, float]]:
    card, clock, begin = session.card, Stopwatch(), time.perf_counter()
    pyramid = LabelPyramid(folder / "labels.tif", slide.m_size, slide.scale.spacing_um_px, card.class_colors)
    for parts in iter_rows(slide, session, plan, clock=clock):
        labels = []
        for part in parts:
            with clock.time("write"):
                labels.append(label_band(part, background=card.background_index))
        with clock.time("write"):
            pyramid.add(part.m_y, np.concatenate(labels, axis=1))
    with clock.time("write"):
        pyramid.close()
    return time.perf_counter() - begin, clock.report(("read", "infer", "blend", "write"))


def run_bare(session: Session, batches: list[np.ndarray]) -> float:
    begin = time.perf_counter()
    for batch in batches:
        session.run(batch)
    return time.perf_counter() - begin


def read_batches(slide: ScaledSlide, plan: Plan) -> list[np.ndarray]:
    width, height = plan.grid.tile_size
    tiles = [slide.read(tile.m_x, tile.m_y, width, height) for tile in plan.tiles]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % plan.batch_size)
    return [np.stack(tiles[i : i + plan.batch_size]) for i in range(0, len(tiles), plan.batch_size)]


def measure(slide_path: Path, model: Path, folder: Path, rounds: int) -> dict[str, object]:
    session, slide, options = open_session(model, provider="cpu"), open_slide(slide_path), RunOptions()
    scaled = scale_slide(slide, session, options)
    _, plan = plan_run(scaled, session, options)
    batches = read_batches(scaled, plan)
    run_bare(session, batches[:2])
    wholes, bares, splits = [], [], []
    for _ in range(rounds):
        seconds, split = run_whole(scaled, session, plan, folder)
        wholes.append(seconds)
        splits.append(split)
        bares.append(run_bare(session, batches))
    whole, bare = statistics.median(wholes), statistics.median(bares)
    tile_mpx = np.prod(plan.grid.tile_size) / 1e6
    fresh_mpx = plan.grid.x.step * plan.grid.y.step / 1e6
    mm2 = fresh_mpx * len(plan.tiles) * scaled.scale.spacing_um_px[0] * scaled.scale.spacing_um_px[1]
    return {
        "model": model.name,
        "slide": slide_path.name,
        "tiles": len(plan.tiles),
        "bare_tiles_per_s": round(len(plan.tiles) / bare, 2),
        "whole_tiles_per_s": round(len(plan.tiles) / whole, 2),
        "whole_over_bare": round(bare / whole, 3),
        "bare_mpx_per_s": round(tile_mpx * len(plan.tiles) / bare, 2),
        "slide_mpx_per_s": round(fresh_mpx * len(plan.tiles) / whole, 2),
        "seconds_per_mm2": round(whole / mm2, 3),
        "split": splits[wholes.index(sorted(wholes)[len(wholes) // 2])],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=default_model())
    parser.add_argument("--slide", type=Path, help="a slide with um/px [default: the demo slide]")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slide = options.slide or write_demo_slide(Path(folder))[0]
        figures = measure(slide, options.model, Path(folder), options.rounds)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
