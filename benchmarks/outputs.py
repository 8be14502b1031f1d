"""What writing the results costs: a whole run with its files over one that hands out bands and writes none.

    python benchmarks/outputs.py [--pixels slide.svs] [--side 16384] [--rounds 1] [--probabilities]

The slide repeats real pixels (or the demo slide's, without `--pixels`). Each run has a process of its own,
the two kinds in turn; times are those of the processor, which other work on the machine disturbs least. Ends
with one line of JSON: seconds and peak resident MiB of both kinds, the share of the run that writing takes,
and the number of objects.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory import read_pixels, write_slide

from histoseg import RunOptions, Segmenter
from histoseg.memory import MIB
from histoseg.models import default_model


def run(kind: str, slide: Path, out: Path, probabilities: bool) -> dict:
    """Run one kind in this process and return what it gave."""
    found = {}
    with Segmenter(default_model(), provider="cpu", options=RunOptions(probabilities=probabilities)) as model:
        begin = time.process_time(), time.perf_counter()
        if kind == "bands":
            for _ in model.stream(slide):
                pass
        else:
            report = model.segment(slide, out)
            found = {"objects": report["objects"]["count"], "written": report["seconds"]["write"]}
        return found | {"cpu": time.process_time() - begin[0], "seconds": time.perf_counter() - begin[1]}


def measure(kind: str, slide: Path, out: Path, probabilities: bool) -> dict:
    words = [sys.executable, __file__, "--run", kind, "--slide", slide, "--out", out]
    words += ["--probabilities"] if probabilities else []
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{kind} failed")
    return json.loads(said) | {"peak": usage.ru_maxrss * 1024 / MIB}


def summarize(runs: list[dict]) -> dict:
    return {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=Path)
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--probabilities", action="store_true")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--slide", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options.run, options.slide, options.out, options.probabilities)))
        return
    runs: dict[str, list[dict]] = {"bands": [], "files": []}
    with tempfile.TemporaryDirectory() as temporary:
        slide = Path(temporary) / "slide.tif"
        write_slide(slide, read_pixels(options.pixels), options.side, options.side)
        for index in range(options.rounds):
            for kind, found in runs.items():
                found.append(measure(kind, slide, Path(temporary) / str(index), options.probabilities))
    bands, files = summarize(runs["bands"]), summarize(runs["files"])
    print(json.dumps({
        "bands": bands, "files": files, "share": round(1 - bands["cpu"] / files["cpu"], 4),
        "ms_per_mpx": round(1e9 * (files["cpu"] - bands["cpu"]) / options.side**2, 1),
        "more_mib": round(files["peak"] - bands["peak"], 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
