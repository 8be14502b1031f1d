"""Speed of a whole run against bare `session.run` on the same batches, alternating in one process.

    python benchmarks/engine.py [--model model.onnx ...] [--slide slide.svs] [--rounds 5]

The whole run reads real slide pixels, blends, labels and writes `labels.tif`; the bare one is onnxruntime
with its own defaults, fed with the same tiles from memory. Without --model it measures the default model and
a U-Net of 7.8 million parameters (random weights). Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from histoseg.blend import label_band
from histoseg.cpu import count_cpus
from histoseg.demo import write_demo_slide
from histoseg.engine import Plan, iter_rows
from histoseg.models import default_model
from histoseg.options import RunOptions
from histoseg.outputs.labels import LabelPyramid
from histoseg.planning import plan_run, scale_slide
from histoseg.providers import list_arguments
from histoseg.session import Session, open_session
from histoseg.slide import ScaledSlide, open_slide
from histoseg.tensors import prepare_input
from histoseg.timing import Stopwatch

STAGES = ("read", "infer", "blend", "write")


def run_whole(
    slide: ScaledSlide, session: Session, plan: Plan, folder: Path
) -> tuple[float, dict[str, float]]:
    card, clock, begin = session.card, Stopwatch(), time.perf_counter()
    size, spacing = slide.m_size, slide.scale.spacing_um_px
    with LabelPyramid(folder / "labels.tif", size, spacing, card.class_colors) as pyramid:
        for parts in iter_rows(slide, session, plan, clock=clock):
            labels = []
            for part in parts:
                with clock.time("write"):
                    labels.append(label_band(part, background=card.background_index))
            with clock.time("write"):
                pyramid.add(part.m_y, np.concatenate(labels, axis=1))
        with clock.time("write"):
            pyramid.close()
    return time.perf_counter() - begin, clock.report(STAGES)


def open_bare(model: Path, session: Session) -> onnxruntime.InferenceSession:
    """Open a model with onnxruntime's own defaults, the same provider, and a thread for each CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cpus()
    options.log_severity_level = 3
    providers = list_arguments(session.provider, session.card.precision, count_cpus())
    return onnxruntime.InferenceSession(model, options, providers=providers)


def run_bare(bare: onnxruntime.InferenceSession, inputs: list[dict[str, Any]]) -> float:
    begin = time.perf_counter()
    for feed in inputs:
        bare.run(None, feed)
    return time.perf_counter() - begin


def read_batches(slide: ScaledSlide, plan: Plan) -> list[np.ndarray]:
    width, height = plan.grid.tile_size
    tiles = [slide.read(tile.m_x, tile.m_y, width, height) for tile in plan.iter_runs()]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % plan.batch_size)
    return [np.stack(tiles[i : i + plan.batch_size]) for i in range(0, len(tiles), plan.batch_size)]


def measure(
    slide_path: Path, model: Path, folder: Path, rounds: int, provider: str = "cpu"
) -> dict[str, Any]:
    """Return the figures of one model on one slide: the median of alternating rounds."""
    session, slide, options = open_session(model, provider=provider), open_slide(slide_path), RunOptions()
    scaled = scale_slide(slide, session, options)
    _, plan = plan_run(scaled, session, options)
    bare = open_bare(model, session)
    inputs = [{session.card.input.name: prepare_input(b, session.card)} for b in read_batches(scaled, plan)]
    run_bare(bare, inputs[:2])
    run_whole(scaled, session, plan, folder)
    wholes, bares, splits = [], [], []
    for _ in range(rounds):
        bares.append(run_bare(bare, inputs))
        seconds, split = run_whole(scaled, session, plan, folder)
        wholes.append(seconds)
        splits.append(split)
    return _summarize(scaled, plan, model, wholes, bares, splits)


def _summarize(
    scaled: ScaledSlide,
    plan: Plan,
    model: Path,
    wholes: list[float],
    bares: list[float],
    splits: list[dict[str, float]],
) -> dict[str, Any]:
    whole, bare, count = statistics.median(wholes), statistics.median(bares), plan.run_count
    tile_mpx = np.prod(plan.grid.tile_size) / 1e6
    covered = [(t.m_write[2] - t.m_write[0]) * (t.m_write[3] - t.m_write[1]) for t in plan.iter_runs()]
    fresh_mpx = min(sum(covered), np.prod(scaled.m_size)) / 1e6
    mm2 = fresh_mpx * scaled.scale.spacing_um_px[0] * scaled.scale.spacing_um_px[1]
    ratios = sorted(b / w for b, w in zip(bares, wholes, strict=True))
    return {
        "model": model.name,
        "slide": scaled.slide.name,
        "tiles": count,
        "bare_tiles_per_s": round(count / bare, 2),
        "whole_tiles_per_s": round(count / whole, 2),
        "whole_over_bare": round(statistics.median(ratios), 3),
        "worst_and_best_round": [round(ratios[0], 3), round(ratios[-1], 3)],
        "bare_mpx_per_s": round(tile_mpx * count / bare, 2),
        "slide_mpx_per_s": round(fresh_mpx / whole, 2),
        "seconds_per_mm2": round(whole / mm2, 3),
        "split": splits[wholes.index(sorted(wholes)[len(wholes) // 2])],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, nargs="+", help="[default: the default model and a U-Net]")
    parser.add_argument("--slide", type=Path, help="a slide with um/px [default: the demo slide]")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = options.slide or write_demo_slide(folder)[0]
        models = options.model
        if models is None:
            from unet import write_unet  # needs onnx

            write_unet(folder / "unet32.onnx")
            models = [default_model(), folder / "unet32.onnx"]
        figures = []
        for model in models:
            figures.append(measure(slide, model, folder, options.rounds))
            print(json.dumps(figures[-1], indent=1), flush=True)
    print(json.dumps({"runs": figures}))


if __name__ == "__main__":
    main()
