"""Kills a run with SIGKILL at random moments, resumes it each time, and compares bytes; then fills a disk.

    python benchmarks/survive.py [--kills 20] [--width 6000] [--height 12000] [--pixels slide.svs] [--seed 0]

The slide repeats real pixels (or the demo slide's, without `--pixels`). Each process is killed a random time
after its start, mostly within a third of what an undisturbed run takes, sometimes when it should be nearly
done; where a run ends before it is killed, its result is compared and removed, and the next begins from
nothing. Then a run gets a disk with too little room (a small tmpfs where that may be mounted, else a limit on
the size of files), and room after its failure. Ends with one line of JSON, and exit code 1 where a byte
differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memory import read_pixels, write_slide

FILES = ("labels.tif", "objects.geojson.gz", "overlay.png", "tissue.png")


def start(slide: Path, out: Path, **given) -> subprocess.Popen[str]:
    command = [Path(sys.executable).with_name("histoseg-run"), slide, "-o", out, "--provider", "cpu"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=pipe, text=True, **given)


def finish(process: subprocess.Popen[str]) -> str:
    said = process.communicate()[1]
    if process.returncode:
        sys.exit(f"the run failed with {process.returncode}: {said}")
    return said


def hash_result(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def count_resumed(folder: Path) -> int:
    return json.loads((folder / "report.json").read_text())["resumed_bands"]


def kill_often(slide: Path, out: Path, kills: int, seconds: float, rng: random.Random) -> dict:
    """Return how often the run was killed, how often it ended, and the results it ended with."""
    folder, results, resumed, killed = out / slide.stem, [], [], 0
    while killed < kills or not results:
        process = start(slide, out)
        late = rng.random() < 0.2  # its outputs are written at the end
        wait = rng.uniform(0.7, 1.1) * seconds if late else rng.uniform(0, seconds / 3)
        try:
            process.wait(wait if killed < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            continue
        finish(process)
        results.append(hash_result(folder))
        resumed.append(count_resumed(folder))
        shutil.rmtree(folder)
    return {"killed": killed, "results": results, "resumed_bands": resumed}


@contextmanager
def lend_disk(folder: Path, size: int) -> Iterator[dict]:
    """Yield what to start a run with that has `size` bytes of disk; more of it comes by calling `grow`."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode == 0:
        try:
            yield {}
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    yield {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))}


def fill_disk(slide: Path, out: Path, size: int) -> dict:
    """Return what a run on a full disk said, and the result it ended with once there was room."""
    with lend_disk(out, size) as limits:
        process = start(slide, out, **limits)
        said = process.communicate()[1].strip()
        failed = process.returncode
        left = sorted(path.name for path in out.iterdir())
        if not limits:
            subprocess.run(["mount", "-o", "remount,size=1g", str(out)], check=True)
        finish(start(slide, out))
        folder = out / slide.stem
        return {
            "kind": "limit on files" if limits else "tmpfs",
            "exit": failed,
            "said": said,
            "lines": len(said.splitlines()),
            "left": left,
            "resumed_bands": count_resumed(folder),
            "result": hash_result(folder),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--width", type=int, default=6000)
    parser.add_argument("--height", type=int, default=12000)
    parser.add_argument("--pixels", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        slide = folder / "slide.tif"
        write_slide(slide, read_pixels(options.pixels), options.width, options.height)
        begin = time.perf_counter()
        finish(start(slide, folder / "whole"))
        seconds = time.perf_counter() - begin
        expected = hash_result(folder / "whole" / "slide")
        print(f"undisturbed: {seconds:.1f} s", file=sys.stderr)
        rng = random.Random(options.seed)  # noqa: S311  # nothing secret
        kills = kill_often(slide, folder / "killed", options.kills, seconds, rng)
        labels = (folder / "whole" / "slide" / "labels.tif").stat().st_size
        full = fill_disk(slide, folder / "full", max(1 << 16, labels // 2))
    same = [result == expected for result in kills.pop("results")]
    disk_same = full.pop("result") == expected
    print(json.dumps({
        "seconds": round(seconds, 1), "cores": os.cpu_count(), **kills, "identical": same,
        "full_disk": full | {"identical": disk_same},
    }))  # fmt: skip
    sys.exit(0 if all(same) and disk_same and full["exit"] == 1 and full["lines"] == 1 else 1)


if __name__ == "__main__":
    main()
