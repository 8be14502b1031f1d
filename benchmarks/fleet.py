"""Slides per hour with several processes over those with one, alternating in one run.

    python benchmarks/fleet.py [--jobs 2] [--slides 4] [--slide slide.svs] [--model model.onnx] [--rounds 3]

Each run starts `histoseg-run` on links to one slide (the demo slide by default), into an empty folder, so
that the time to start and to load the model counts. The labels must be the same, byte by byte. Ends with
one line of JSON. The machine must be idle: both ways use all its cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from histoseg.cpu import count_cpus
from histoseg.demo import write_demo_slide
from histoseg.models import default_model


def run_fleet(slides: Path, out: Path, model: Path, jobs: int) -> tuple[float, str]:
    """Return the seconds that all slides took, and a hash of their labels."""
    shutil.rmtree(out, ignore_errors=True)
    words = [slides, "-o", out, "-m", model, "--jobs", str(jobs), "--quiet"]
    begin = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("histoseg-run"), *words], check=True)
    seconds = time.perf_counter() - begin
    labels = sorted(out.glob("*/labels.tif"))
    return seconds, hashlib.sha256(b"".join(path.read_bytes() for path in labels)).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--slides", type=int, default=4, help="how many")
    parser.add_argument("--slide", type=Path, help="a slide with um/px [default: the demo slide]")
    parser.add_argument("--model", type=Path, default=default_model())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[int, list[float]] = {1: [], options.jobs: []}
    hashes = set()
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "slides", Path(name) / "out"
        folder.mkdir()
        slide = (options.slide or write_demo_slide(Path(name))[0]).resolve()
        for number in range(options.slides):
            (folder / f"{number}{slide.suffix}").symlink_to(slide)
        for _ in range(options.rounds):
            for jobs, measured in seconds.items():
                taken, digest = run_fleet(folder, out, options.model, jobs)
                measured.append(taken)
                hashes.add(digest)
    assert len(hashes) == 1, "the labels differ"
    ratios = sorted(one / many for one, many in zip(*seconds.values(), strict=True))
    per_hour = {jobs: 3600 * options.slides / statistics.median(all_) for jobs, all_ in seconds.items()}
    figures = {
        "slide": slide.name,
        "model": options.model.name,
        "cpus": count_cpus(),
        "slides_per_hour": {f"jobs {jobs}": round(count, 1) for jobs, count in per_hour.items()},
        "ratio": round(statistics.median(ratios), 3),
        "worst_and_best_round": [round(ratios[0], 3), round(ratios[-1], 3)],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
