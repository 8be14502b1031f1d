"""Simulate a scanner, and say how long after the last row the result was ready.

    python examples/scanner.py slide.svs -o results [--mpx-per-second 5] [--field 256] [--model model.onnx]

A file plays the scanner: fields of view in serpentine order, at the given speed. When the model keeps up, the
result is there within the time that one band takes to compute, plus half a second; fields as high as a tile
may complete two bands at a time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import histoseg
from histoseg.models import default_model
from histoseg.slide import FileSlide


def iter_fields(width: int, height: int, side: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield `(x, y, width, height)` of the fields of view, rows of them from left to right and back."""
    for index, y in enumerate(range(0, height, side)):
        columns = range(0, width, side)
        for x in columns if index % 2 == 0 else reversed(columns):
            yield x, y, min(side, width - x), min(side, height - y)


class Scanner(Thread):
    """Pushes a file in fields of view, so many million pixels in a second."""

    def __init__(self, file: FileSlide, live: histoseg.LiveSlide, side: int, mpx_per_second: float) -> None:
        """Prepare; the scan begins with `start`."""
        super().__init__(name="scanner")
        self._file, self._live, self._side = file, live, side
        self._px_per_second = mpx_per_second * 1e6
        self.finished_at = self.seconds = self.seconds_late = 0.0

    def run(self) -> None:
        """Scan the slide."""
        begin = due = time.monotonic()
        with self._live:
            for x, y, width, height in iter_fields(*self._file.level_sizes[0], self._side):
                rgb = self._file.read_level(0, x, y, width, height)
                due += width * height / self._px_per_second
                time.sleep(max(0.0, due - time.monotonic()))
                self._live.push(x, y, rgb)
        self.finished_at = time.monotonic()
        self.seconds, self.seconds_late = self.finished_at - begin, self.finished_at - due


def scan(file: FileSlide, segmenter: histoseg.Segmenter, given: argparse.Namespace) -> str:
    """Scan and segment a slide, and return what a person wants to know of it."""
    width, height = file.level_sizes[0]
    spacing = file.spacing_um_px or segmenter.card.spacing_um_px
    live = histoseg.LiveSlide(width, height, spacing, name=file.name)
    scanner = Scanner(file, live, given.field, given.mpx_per_second)
    scanner.start()
    try:
        report = segmenter.segment(live, given.out)
        ready_at = time.monotonic()
    except histoseg.HistosegError as error:
        live.abort(str(error))
        raise
    finally:
        scanner.join()
    return describe(report, scanner, ready_at - scanner.finished_at)


def describe(report: dict[str, Any], scanner: Scanner, seconds: float) -> str:
    """Return one line: how late the result was, and what a band of tiles takes."""
    tiles = report["tiles"]
    band_seconds = report["seconds"]["infer"] / tiles["run"] * tiles["columns"]
    return (
        f"ready {seconds:.2f} s after the last field; a band of {tiles['columns']} tiles takes "
        f"{band_seconds:.2f} s; the scan took {scanner.seconds:.1f} s, {scanner.seconds_late:.1f} s of them "
        f"waiting, the model {report['seconds']['infer']:.1f} s"
    )


def main() -> None:
    """Scan one slide."""
    parser = argparse.ArgumentParser(description="Segment a slide while a simulated scanner pushes it.")
    parser.add_argument("slide", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("histoseg-live"))
    parser.add_argument("--mpx-per-second", type=float, default=5.0)
    parser.add_argument("--field", type=int, default=256, help="side of a field of view in px")
    parser.add_argument("--model", type=Path, default=default_model())
    parser.add_argument("--provider", default="auto")
    given = parser.parse_args()
    try:
        with (
            histoseg.open_slide(given.slide) as file,
            histoseg.Segmenter(given.model, provider=given.provider) as segmenter,
        ):
            print(scan(file, segmenter, given))
    except histoseg.HistosegError as error:
        raise SystemExit(f"scanner: {error}") from error


if __name__ == "__main__":
    main()
