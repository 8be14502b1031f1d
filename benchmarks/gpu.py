"""Acceptance on a machine with an NVIDIA GPU: does it really run there, does it agree with the CPU, how fast.

    python benchmarks/gpu.py OUT [MODEL ...] [--provider cuda] [--slide slide.svs] [--rounds 5]

For each model (the default one when none is given): the nodes on each provider, the share of pixels whose
label is the CPU's (fp32: at least 99.99 %), tiles per second of a whole run over those of bare `session.run`,
how busy the GPU was, and the seconds of each stage. Writes OUT/gpu.json and OUT/gpu.md. Ends with one line of
JSON; exits 1 when there is no GPU or a check fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np

from histoseg.demo import write_demo_slide
from histoseg.errors import HistosegError, ProviderError
from histoseg.models import default_model
from histoseg.options import RunOptions
from histoseg.planning import plan_run, scale_slide
from histoseg.session import Session, open_session
from histoseg.slide import open_slide

LEAST_AGREEMENT = 0.9999
STAGES = ("read", "infer", "blend", "write")
SAMPLE_MILLISECONDS = 100


class BusySampler:
    """Samples how busy the first GPU is while its block runs."""

    def __init__(self) -> None:
        """Sample nothing yet."""
        self.percent: float | None = None

    def __enter__(self) -> Self:
        """Start nvidia-smi."""
        command = ["nvidia-smi", "-i", "0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        command += ["-lms", str(SAMPLE_MILLISECONDS)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it, and average what it said."""
        self._process.terminate()
        said, _ = self._process.communicate()
        samples = [int(line) for line in said.splitlines() if line.strip().isdecimal()]
        self.percent = round(statistics.mean(samples), 1) if samples else None


def import_engine() -> ModuleType:
    """Return `benchmarks/engine.py`, which may need what the runtime does not.

    Raises:
        HistosegError: Something is missing.
    """
    try:
        import engine
    except ImportError as error:
        raise HistosegError(
            f"benchmarks/engine.py lacks {error.name}; repair with: pip install {error.name}"
        ) from error
    return engine


def find_gpu() -> str:
    """Return the name and driver of the first GPU.

    Raises:
        ProviderError: There is none.
    """
    command = ["nvidia-smi", "-i", "0", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ProviderError(
            f"no NVIDIA GPU here (nvidia-smi: {error}), expected one; nothing was measured"
        ) from error
    return finished.stdout.strip()


def compare_labels(session: Session, reference: Session, batches: list[np.ndarray]) -> float:
    """Return the share of pixels that two sessions label alike."""
    same = [
        np.mean(session.run(batch).argmax(axis=-1) == reference.run(batch).argmax(axis=-1))
        for batch in batches
    ]
    return float(np.mean(same))


def accept(model: Path, provider: str, slide_path: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Return all figures of one model on one provider, and whether it passes.

    Raises:
        HistosegError: The provider does not run it.
    """
    engine = import_engine()
    with open_session(model, provider=provider) as session, open_slide(slide_path) as slide:
        scaled = scale_slide(slide, session, RunOptions())
        _, plan = plan_run(scaled, session, RunOptions())
        agreement = None
        if session.card.precision == "fp32":
            with open_session(model, provider="cpu") as reference:
                agreement = compare_labels(session, reference, engine.read_batches(scaled, plan))
        engine.run_whole(scaled, session, plan, folder)
        with BusySampler() as busy:
            for _ in range(rounds):
                engine.run_whole(scaled, session, plan, folder)
        facts = {"precision": session.card.precision, "placement": session.placement}
    return {
        **engine.measure(slide_path, model, folder, rounds, provider),
        **facts,
        "provider": provider,
        "labels_like_cpu": agreement,
        "gpu_busy_percent": busy.percent,
        "passes": agreement is None or agreement >= LEAST_AGREEMENT,
    }


def write_table(path: Path, gpu: str, rows: list[dict[str, Any]]) -> None:
    """Write the figures as a Markdown table; a model that failed has one cell with the reason."""
    heads = ["GPU", "model", "precision", "provider", "bare tiles/s", "whole tiles/s", "whole over bare"]
    heads += ["nodes there", "GPU busy (%)", "labels like the CPU's (%)", f"{', '.join(STAGES)} (s)"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        if "error" in row:
            lines.append(f"| {gpu} | {row['model']} | {row['error']} |" + " |" * (len(heads) - 3))
            continue
        agreement = row["labels_like_cpu"]
        cells = [gpu, row["model"], row["precision"], row["provider"], row["bare_tiles_per_s"]]
        cells += [row["whole_tiles_per_s"], row["whole_over_bare"], count_nodes(row), row["gpu_busy_percent"]]
        cells += ["" if agreement is None else f"{100 * agreement:.4f}"]
        cells += [", ".join(f"{row['split'][stage]:.2f}" for stage in STAGES)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def count_nodes(row: dict[str, Any]) -> str:
    """Return how many of a model's nodes run on the provider that was asked for."""
    placement = row["placement"]
    return f"{placement[row['provider']]} of {sum(placement.values())}" if placement else "unknown"


def run(options: argparse.Namespace) -> dict[str, Any]:
    gpu = find_gpu()
    options.out.mkdir(parents=True, exist_ok=True)
    slide = options.slide or write_demo_slide(options.out)[0]
    rows = []
    for model in options.models or [default_model()]:
        try:
            rows.append(accept(model, options.provider, slide, options.out, options.rounds))
        except HistosegError as error:  # one model that fails hides no other
            rows.append({"model": model.name, "error": str(error), "passes": False})
    report = {"gpu": gpu, "slide": slide.name, "runs": rows, "passes": all(row["passes"] for row in rows)}
    (options.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_table(options.out / "gpu.md", gpu, rows)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for gpu.json and gpu.md")
    parser.add_argument("models", type=Path, nargs="*", help="[default: the default model]")
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--slide", type=Path, help="a slide with um/px [default: the demo slide]")
    parser.add_argument("--rounds", type=int, default=5)
    try:
        report = run(parser.parse_args())
    except HistosegError as error:
        report = {"error": str(error), "passes": False}
    print(json.dumps(report))
    sys.exit(0 if report["passes"] else 1)


if __name__ == "__main__":
    main()
