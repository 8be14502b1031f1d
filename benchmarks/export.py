"""Speed, size and accuracy of fp16 and int8 files against the fp32 file, alternating in one process.

    python benchmarks/export.py [--model model.onnx] [--recipe train/recipes/nuclei.toml --root DATA]

The model is quantized here, on the recipe's training images; Dice is that of the images the recipe holds out,
seen whole. Without a recipe the demo slide calibrates and there is no Dice: without --model either, it is a
U-Net of 7.8 million parameters with random weights. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from unet import write_unet

from histoseg.card import METADATA_KEY, ModelCard, card_from_text, card_to_text
from histoseg.score import count_confusion, score_confusion
from histoseg.session import Session, open_session
from histoseg.truth import NO_CLASS
from histoseg_export.gates import Gates
from histoseg_export.half import to_half
from histoseg_export.quantize import TILES, quantize
from histoseg_export.tileset import TileSet, open_tile_set
from histoseg_train.dataset import Item, list_items
from histoseg_train.images import SampleStore

SEED = 21
WARM_UP = 2


def read_card(model: onnx.ModelProto) -> ModelCard:
    return card_from_text({entry.key: entry.value for entry in model.metadata_props}[METADATA_KEY])


def save(path: Path, model: onnx.ModelProto, card: ModelCard) -> Path:
    helper.set_model_props(model, {METADATA_KEY: card_to_text(card)})
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def iter_whole(items: tuple[Item, ...], card: ModelCard) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield source, tile and truth of whole images, mirrored at their borders to fill tiles."""
    store = SampleStore(items, classes=len(card.class_names), spacing_um_px=card.spacing_um_px)
    width, height = card.patch_size_pixels
    for index, item in enumerate(store.items):
        sample = store[index]
        rest = [(0, -sample.rgb.shape[0] % height), (0, -sample.rgb.shape[1] % width)]
        rgb = np.pad(sample.rgb, [*rest, (0, 0)], mode="symmetric")
        truth = np.pad(sample.labels, rest, constant_values=NO_CLASS)
        for y in range(0, rgb.shape[0], height):
            for x in range(0, rgb.shape[1], width):
                window = np.s_[y : y + height, x : x + width]
                yield item.source, rgb[window], truth[window]


def cut_training(items: tuple[Item, ...], card: ModelCard) -> TileSet:
    """Return tiles of randomly chosen images."""
    chosen = np.random.default_rng(SEED).permutation(len(items))[:TILES]
    cuts = [cut for index in chosen for cut in iter_whole((items[index],), card)][:TILES]
    tiles, truth = (np.stack([cut[place] for cut in cuts]) for place in (1, 2))
    return TileSet(tiles, truth, f"{len(chosen)} training images")


def score(sessions: dict[str, Session], items: tuple[Item, ...], card: ModelCard) -> dict[str, Any]:
    """Return Dice of the classes but the background, by source and over all pixels, for each session."""
    classes = len(card.class_names)
    counts: dict[tuple[str, str], Any] = {}
    for source, tile, truth in iter_whole(items, card):
        known = truth != NO_CLASS
        for name, session in sessions.items():
            labels = session.run(tile[None])[0].argmax(-1).astype(np.uint8)
            found = count_confusion(truth[known], labels[known], classes=classes)
            for key in (source, "all"):
                counts[name, key] = counts.get((name, key), 0) + found
    result: dict[str, Any] = {}
    for (name, source), found in sorted(counts.items()):
        rows = score_confusion(found, card.class_names)["classes"]
        dice = [row["dice"] for index, row in enumerate(rows) if index != card.background_index]
        result.setdefault(name, {})[source] = round(float(np.mean([d for d in dice if d is not None])), 4)
    return result


def alternate(sessions: dict[str, Session], tile: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Return milliseconds of each round and session; the rounds take turns."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for index in range(rounds + WARM_UP):
        for name, session in sessions.items():
            begin = time.perf_counter()
            session.run(tile[None])
            if index >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - begin))
    return times


def measure(
    path: Path, folder: Path, rounds: int, training: tuple[Item, ...], held_out: tuple[Item, ...]
) -> dict[str, Any]:
    model = onnx.load(path)
    card = read_card(model)
    tile_set = cut_training(training, card) if training else open_tile_set(None, card, 12, seed=SEED)
    half = save(folder / "half.onnx", *to_half(model, card))
    int8, int8_card, report = quantize(model, card, tile_set, Gates().pick("int8"))
    quantized = save(folder / "int8.onnx", int8, int8_card)
    with open_session(path, provider="cpu") as first, open_session(quantized, provider="cpu") as second:
        sessions = {"fp32": first, "int8": second}
        times = alternate(sessions, tile_set.tiles[0], rounds)
        dice = score(sessions, held_out, card) if held_out else None
    ratios = sorted(a / b for a, b in zip(times["fp32"], times["int8"], strict=True))
    files = {"fp32": path, "fp16": half, "int8": quantized}
    return {
        "model": path.name,
        "tile": card.patch_size_pixels[0],
        "fp32_ms": round(min(times["fp32"]), 1),
        "int8_ms": round(min(times["int8"]), 1),
        "speedup": round(statistics.median(ratios), 2),
        "worst_and_best_round": [round(ratios[0], 2), round(ratios[-1], 2)],
        "megabytes": {name: round(file.stat().st_size / 1e6, 2) for name, file in files.items()},
        "int8_convolutions": f"{report.kernels.int8_convolutions} of {report.kernels.convolutions}",
        "float_layers": [error.name for error in report.float_layers],
        "label_agreement": round(report.parity.label_agreement, 5),
        "gate_held": report.parity.passed,
        "held_out_images": len(held_out),
        "dice": dice,
        "dice_drop": round(dice["fp32"]["all"] - dice["int8"]["all"], 4) if dice else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="an fp32 export [default: a U-Net with random weights]")
    parser.add_argument("--recipe", type=Path, help="a dataset file that holds images out")
    parser.add_argument("--root", type=Path, help="what the recipe's paths are relative to")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    items = list_items(options.recipe, root=options.root).items if options.recipe else ()
    training = tuple(item for item in items if not item.held_out)
    held_out = tuple(item for item in items if item.held_out)
    with tempfile.TemporaryDirectory() as name:
        model = options.model
        if model is None:
            model = Path(name) / "unet32.onnx"
            write_unet(model)
        figures = measure(model, Path(name), options.rounds, training, held_out)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
