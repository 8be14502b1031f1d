"""Pull: another program takes the finished bands of a slide, one after the other.

    python examples/embed_pull.py slide.svs [--model model.onnx]

Nothing is written; memory is that of a few bands, however large the slide.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import histoseg
from histoseg.models import default_model


def count_classes(slide: Path, segmenter: histoseg.Segmenter) -> Counter[str]:
    """Return the pixels of each class, from bands that are forgotten one by one."""
    pixels: Counter[str] = Counter()
    with segmenter.stream(slide, deadline_seconds=3600) as bands:
        for band in bands:
            for index, name in enumerate(segmenter.card.class_names):
                pixels[name] += int((band.labels == index).sum())
            x0, y0, x1, y1 = band.l0_box
            print(f"level-0 rows {y0:.0f} to {y1:.0f}, columns {x0:.0f} to {x1:.0f}")
    return pixels


def main() -> None:
    """Count the pixels of each class on a slide."""
    parser = argparse.ArgumentParser(description="Count the pixels of each class on a slide.")
    parser.add_argument("slide", type=Path)
    parser.add_argument("--model", type=Path, default=default_model())
    parser.add_argument("--provider", default="auto")
    given = parser.parse_args()
    try:
        with histoseg.Segmenter(given.model, provider=given.provider) as segmenter:
            pixels = count_classes(given.slide, segmenter)
    except histoseg.HistosegError as error:  # every failure that a person can repair, in one line
        raise SystemExit(f"embed_pull: {error}") from error
    for name, count in pixels.items():
        print(f"{name}: {count} px")


if __name__ == "__main__":
    main()
