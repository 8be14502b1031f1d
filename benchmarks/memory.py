"""Peak memory of `histoseg-run` on slides that differ in height alone, and on a very wide one with a limit.

    python benchmarks/memory.py [--model model.onnx --card card.json] [--width 20000] [--heights 20000 80000]
                                [--wide 120000] [--wide-height 4096] [--max-memory 1GiB]

The slides repeat real pixels (or the demo slide's, without `--pixels`) in a tiled JPEG pyramid of two levels.
Ends with one line of JSON: peak resident MiB and seconds of each run, each in its own process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile

from histoseg.demo import draw_slide
from histoseg.slide import open_slide

TILE = 512
REDUCE = 16


def read_pixels(path: Path | None) -> np.ndarray:
    if path is None:
        return draw_slide(2048, 7)[0]
    with open_slide(path) as slide:
        width, height = (side // TILE * TILE for side in slide.level_sizes[0])
        return slide.read_level(0, 0, 0, width, height)


def iter_tiles(rgb: np.ndarray, width: int, height: int) -> Iterator[bytes]:
    """Yield JPEG tiles of `rgb`, repeated over `width` x `height`."""
    rows, columns = rgb.shape[0] // TILE, rgb.shape[1] // TILE
    encoded = {}
    for row in range(rows):
        for column in range(columns):
            part = rgb[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE, ::-1]
            encoded[row, column] = cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    for row in range(-(-height // TILE)):
        for column in range(-(-width // TILE)):
            yield encoded[row % rows, column % columns]


def write_slide(path: Path, rgb: np.ndarray, width: int, height: int) -> None:
    size = (rgb.shape[1] // REDUCE, rgb.shape[0] // REDUCE)
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    small = np.tile(small, (-(-TILE // size[1]), -(-TILE // size[0]), 1))
    small = small[: small.shape[0] // TILE * TILE, : small.shape[1] // TILE * TILE]
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for pixels, factor in ((rgb, 1), (small, REDUCE)):
            shape = (height // factor, width // factor, 3)
            per_cm = 1e4 / (0.5 * factor)
            tif.write(
                iter_tiles(pixels, shape[1], shape[0]), shape=shape, dtype=np.uint8, tile=(TILE, TILE),
                compression="jpeg", photometric="ycbcr", subsampling=(2, 2), resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER", subfiletype=int(factor > 1), metadata=None,
            )  # fmt: skip


def measure(slide: Path, out: Path, words: list[str]) -> dict[str, float]:
    command = [Path(sys.executable).with_name("histoseg-run"), slide, "-o", out, "--provider", "cpu", *words]
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"histoseg-run failed on {slide}")
    report = json.loads((out / slide.stem / "report.json").read_text(encoding="utf-8"))
    return {
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
        "seconds": round(time.perf_counter() - begin, 1),
        "panels": report["tiles"]["panels"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--card", type=Path)
    parser.add_argument("--pixels", type=Path, help="a slide whose pixels are repeated")
    parser.add_argument("--width", type=int, default=20_000)
    parser.add_argument("--heights", type=int, nargs="*", default=[20_000, 80_000])
    parser.add_argument("--wide", type=int, default=120_000, help="0 leaves it out")
    parser.add_argument("--wide-height", type=int, default=4096)
    parser.add_argument("--max-memory", default="1GiB", help="limit of the wide run")
    options = parser.parse_args()
    words = [w for name in ("model", "card") if (v := getattr(options, name)) for w in (f"--{name}", str(v))]
    cases = [(options.width, height, words) for height in options.heights]
    if options.wide:
        cases.append((options.wide, options.wide_height, [*words, "--max-memory", options.max_memory]))
    rgb, runs = read_pixels(options.pixels), {}
    with tempfile.TemporaryDirectory() as name:
        for width, height, arguments in cases:
            slide = Path(name) / f"{width}x{height}.tif"
            write_slide(slide, rgb, width, height)
            runs[slide.stem] = measure(slide, Path(name) / "out", arguments)
            print(slide.stem, runs[slide.stem], flush=True)
            slide.unlink()
    peaks = [runs[f"{options.width}x{height}"]["peak_mib"] for height in options.heights]
    spread = round(max(peaks) - min(peaks), 1) if peaks else None
    print(json.dumps({"runs": runs, "spread_mib": spread, "max_memory": options.max_memory}))


if __name__ == "__main__":
    main()
