"""Peak memory of `histoseg-run` on slides that differ in height alone.

    python benchmarks/memory.py [--model model.onnx --card card.json] [--width 20000] [--heights 20000 80000]

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
    return {"peak_mib": round(usage.ru_maxrss / 1024, 1), "seconds": round(time.perf_counter() - begin, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--card", type=Path)
    parser.add_argument("--pixels", type=Path, help="a slide whose pixels are repeated")
    parser.add_argument("--width", type=int, default=20_000)
    parser.add_argument("--heights", type=int, nargs="+", default=[20_000, 80_000])
    options = parser.parse_args()
    words = [w for name in ("model", "card") if (v := getattr(options, name)) for w in (f"--{name}", str(v))]
    rgb = read_pixels(options.pixels)
    runs = {}
    with tempfile.TemporaryDirectory() as name:
        for height in options.heights:
            slide = Path(name) / f"{options.width}x{height}.tif"
            write_slide(slide, rgb, options.width, height)
            runs[slide.stem] = measure(slide, Path(name) / "out", words)
            print(slide.stem, runs[slide.stem], flush=True)
            slide.unlink()
    peaks = [run["peak_mib"] for run in runs.values()]
    print(json.dumps({"runs": runs, "spread_mib": round(max(peaks) - min(peaks), 1)}))


if __name__ == "__main__":
    main()
