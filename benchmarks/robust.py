"""Dice of models on the same images, seen as other stainers, scanners and scales would show them.

    python benchmarks/robust.py MODEL... --data monuseg --root DATA

Models are of two classes, `.keras` or `.onnx`; the images are those that the data set holds out, or all. Each
is changed in one way at a time before the model sees it: the amounts of haematoxylin and eosin (A. C. Ruifrok
and D. A. Johnston, "Quantification of histochemical staining by color deconvolution", Analytical and
Quantitative Cytology and Histology 23, 2001), brightness, hue, blur, JPEG, and a scale that is not what the
slide states. Ends with one line of JSON: pooled Dice by change, their mean and their lowest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from histoseg_train.dataset import Item, list_items
from histoseg_train.evaluation.scores import score_image
from histoseg_train.evaluation.tiled import open_model
from histoseg_train.images import Sample, SampleStore

# rows: optical density of haematoxylin, eosin and what is left, in red, green and blue
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)


def stain(rgb: np.ndarray, amounts: tuple[float, float]) -> np.ndarray:
    density = -np.log((rgb.astype(np.float64) + 1) / 256)
    shares = density @ np.linalg.inv(STAINS)
    return np.clip(256 * np.exp(-(shares * [*amounts, 1.0]) @ STAINS) - 1, 0, 255).astype(np.uint8)


def turn_hue(rgb: np.ndarray, degrees: int) -> np.ndarray:
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + degrees // 2) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def compress(rgb: np.ndarray, quality: int) -> np.ndarray:
    data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda rgb: rgb,
    "pale": lambda rgb: stain(rgb, (0.6, 0.6)),
    "strong": lambda rgb: stain(rgb, (1.5, 1.5)),
    "little haematoxylin": lambda rgb: stain(rgb, (0.6, 1.0)),
    "little eosin": lambda rgb: stain(rgb, (1.0, 0.5)),
    "much eosin": lambda rgb: stain(rgb, (1.0, 1.6)),
    "dark": lambda rgb: (rgb * 0.75).astype(np.uint8),
    "bluer": lambda rgb: turn_hue(rgb, -16),
    "redder": lambda rgb: turn_hue(rgb, 16),
    "blurred": lambda rgb: cv2.GaussianBlur(rgb, (0, 0), 1.0),
    "JPEG 30": lambda rgb: compress(rgb, 30),
}
SCALES = {"20 % smaller": 0.8, "25 % larger": 1.25}


def change_scale(sample: Sample, scale: float) -> Sample:
    height, width = sample.labels.shape
    size = (round(width * scale), round(height * scale))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    rgb = cv2.resize(sample.rgb, size, interpolation=kind)
    return Sample(rgb, cv2.resize(sample.labels, size, interpolation=cv2.INTER_NEAREST))


def iter_views(sample: Sample) -> Iterator[tuple[str, Sample]]:
    for name, change in CHANGES.items():
        yield name, replace(sample, rgb=change(sample.rgb))
    for name, scale in SCALES.items():
        yield name, change_scale(sample, scale)


def measure(path: Path, items: Sequence[Item]) -> dict[str, float]:
    """Return the pooled Dice of class 1 by change."""
    counts: dict[str, np.ndarray] = {}
    with open_model(path) as model:
        card = model.card
        store = SampleStore(
            items,
            classes=2,
            spacing_um_px=card.spacing_um_px,
            colors=card.class_colors,
            equalization=card.input.equalization,
        )
        for index, item in enumerate(items):
            for name, sample in iter_views(store[index]):
                found = score_image(model, item, sample, threshold=card.output.threshold).counts
                counts[name] = counts.get(name, 0) + found
    return {name: round(float(2 * c[1, 1] / (c[1].sum() + c[:, 1].sum())), 4) for name, c in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, action="append", required=True, help="a data set or a recipe")
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    results = {}
    for data in options.data:
        dataset = list_items(data, root=options.root)
        for path in options.models:
            dices = measure(path, dataset.held_out or dataset.training)
            dices |= {"mean": round(float(np.mean(list(dices.values()))), 4), "lowest": min(dices.values())}
            results[f"{data.stem}: {path}"] = dices
            print(f"{data.stem}: {path.name}: {dices}", file=sys.stderr)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
