"""Push: a scanner hands over rows as it takes them, and gets labels back while it is still scanning.

    python examples/embed_push.py slide.svs [--model model.onnx]

A file plays the scanner here. It pushes from its own thread; the main thread takes the finished bands.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from threading import Thread

import histoseg
from histoseg.models import default_model
from histoseg.slide import FileSlide

ROWS_AT_A_TIME = 100


def scan(file: FileSlide, live: histoseg.LiveSlide) -> None:
    """Push a file's rows; leaving the block finishes the scan, or aborts it when something fails."""
    width, height = file.level_sizes[0]
    try:
        with live:
            for y in range(0, height, ROWS_AT_A_TIME):
                live.push(0, y, file.read_level(0, 0, y, width, min(ROWS_AT_A_TIME, height - y)))
    except histoseg.HistosegError as error:  # the run has failed, and says why in its own thread
        print(f"scanner: {error}")


def segment(file: FileSlide, segmenter: histoseg.Segmenter) -> None:
    """Take the bands of a scan while it goes on."""
    width, height = file.level_sizes[0]
    live = histoseg.LiveSlide(width, height, file.spacing_um_px or segmenter.card.spacing_um_px)
    scanner = Thread(target=scan, args=(file, live), name="scanner")
    with segmenter.stream(live) as bands:
        scanner.start()
        for band in bands:
            state = "scanned" if live.gap_px is not None else "scanning"
            objects = int((band.labels != segmenter.card.background_index).sum())
            print(f"{state}: rows {band.m_y} to {band.m_y + len(band.labels)} hold {objects} px")
    scanner.join()


def main() -> None:
    """Segment a slide while it is scanned."""
    parser = argparse.ArgumentParser(description="Segment a slide while it is scanned.")
    parser.add_argument("slide", type=Path)
    parser.add_argument("--model", type=Path, default=default_model())
    parser.add_argument("--provider", default="auto")
    given = parser.parse_args()
    try:
        with (
            histoseg.open_slide(given.slide) as file,
            histoseg.Segmenter(given.model, provider=given.provider) as segmenter,
        ):
            segment(file, segmenter)
    except histoseg.HistosegError as error:
        raise SystemExit(f"embed_push: {error}") from error


if __name__ == "__main__":
    main()
