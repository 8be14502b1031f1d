"""Prove in fresh processes that an ONNX file behaves like the Keras model, on real tiles, or refuse it.

One process loads the Keras file and leaves its probabilities on disk; another opens one ONNX file and
compares. What the exporting process did to its own copy of the model cannot make the two agree.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from histoseg.card import METADATA_KEY, ModelCard, card_from_text, card_to_text
from histoseg.errors import ModelError
from histoseg_export.convert import to_reference_input
from histoseg_export.fresh import run_fresh
from histoseg_export.gates import Floor, Gate
from histoseg_export.parity import Expected, Parity, compare, iter_batches, middle_ms, require_parity

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Pixels
    from histoseg_export.describe import Description
    from histoseg_export.load import LoadOptions
    from histoseg_export.tileset import TileSet

__all__ = ["Parity", "Reference", "measure_floor", "predict_source", "prove_file", "require_parity"]

ONE_ULP = 1 + 2.0**-23
"""Multiplies a float32 by what rounding may change it."""

_TILES, _TRUTH, _PROBABILITIES = "tiles.npy", "truth.npy", "probabilities.npy"


@dataclass(frozen=True)
class Reference:
    """What a source model gives for tiles, its arrays in a folder: small enough for another process."""

    folder: Path
    words: str
    source: str
    class_names: tuple[str, ...]
    ms_per_tile: float | None = None
    threshold: float | None = None

    def open(self) -> Expected:
        """Map the arrays from disk."""
        truth = _map(self.folder / _TRUTH) if (self.folder / _TRUTH).is_file() else None
        tiles, probabilities = _map(self.folder / _TILES), _map(self.folder / _PROBABILITIES)
        return Expected(
            words=self.words,
            source=self.source,
            class_names=self.class_names,
            tiles=tiles,
            truth=truth,
            probabilities=probabilities,
            ms_per_tile=self.ms_per_tile,
            threshold=self.threshold,
        )


def predict_source(
    source: Path, load: LoadOptions, description: Description, tile_set: TileSet, folder: Path
) -> Reference:
    """Run the Keras model on the proof's tiles in a fresh process.

    Args:
        source: The Keras file.
        load: How it is read.
        description: What the model is.
        tile_set: Tiles of the description's size.
        folder: An empty one, for tiles and probabilities.

    Raises:
        ModelError: The model cannot be loaded, or its outputs are not what its activation promises.
    """
    np.save(folder / _TILES, tile_set.tiles)
    if tile_set.truth is not None:
        np.save(folder / _TRUTH, tile_set.truth)
    names = description.class_names
    draft = Reference(folder, "keras", tile_set.words, names, threshold=description.threshold)
    return run_fresh(write_probabilities, draft, source, load, description)


def write_probabilities(
    reference: Reference, source: Path, load: LoadOptions, description: Description
) -> Reference:
    """Load a Keras file and leave its probabilities in the reference's folder; `run_fresh` calls this."""
    model, words = _load_source(source, load, description)
    tiles = _map(reference.folder / _TILES)
    shape = (*tiles.shape[:3], len(description.class_names))
    values = np.lib.format.open_memmap(reference.folder / _PROBABILITIES, "w+", np.float32, shape)
    seconds = []
    for batch in iter_batches(len(tiles)):
        begin = perf_counter()
        values[batch] = predict_reference(model, tiles[batch], description)
        seconds.append((perf_counter() - begin) / len(tiles[batch]))
    values.flush()
    return replace(reference, words=words, ms_per_tile=middle_ms(seconds))


def measure_floor(source: Path, load: LoadOptions, description: Description, reference: Reference) -> Floor:
    """Run the Keras model again in a fresh process, on images changed by rounding alone.

    Args:
        source: The Keras file.
        load: How it is read.
        description: What the model is.
        reference: What `predict_source` returned.

    Raises:
        ModelError: The model cannot be loaded.
    """
    return run_fresh(compare_with_itself, reference, source, load, description)


def compare_with_itself(
    reference: Reference, source: Path, load: LoadOptions, description: Description
) -> Floor:
    """Do what `measure_floor` says, in this process."""
    model, _ = _load_source(source, load, description)
    found = compare(
        lambda tiles: predict_reference(model, tiles, description, scale=ONE_ULP),
        reference.open(),
        Gate("fp32", min_labels=0),
    )
    return Floor(found.label_agreement, found.off_ppm, found.mean_abs)


def _load_source(source: Path, load: LoadOptions, description: Description) -> tuple[Any, str]:
    """Return the Keras model for the description's tile, and words for it."""
    from histoseg_export.load import load_model
    from histoseg_export.retarget import accepts_tile, fix_size

    model = load_model(source, load).model
    if accepts_tile(model, description.tile):
        return model, "keras"
    return fix_size(model, description.tile), "keras, rebuilt for this tile"


def prove_file(path: Path, reference: Reference, gate: Gate) -> Parity:
    """Compare an ONNX file with the source model's probabilities, in a fresh process.

    Args:
        path: An ONNX file of any precision, with its card; it runs on onnxruntime's CPU provider.
        reference: What `predict_source` returned.
        gate: What is asked of the file.

    Returns:
        The figures, whether or not they pass; see `require_parity`.

    Raises:
        ModelError: The file cannot be run, or gives no probabilities.
    """
    return run_fresh(compare_file, path, reference, gate)


def compare_file(path: Path, reference: Reference, gate: Gate) -> Parity:
    """Do what `prove_file` says, in this process."""
    from histoseg.session import open_session

    with tempfile.TemporaryDirectory() as folder:
        card = Path(folder) / "card.json"
        card.write_text(card_to_text(_allow_cpu(path)), encoding="utf-8")
        with open_session(path, provider="cpu", card=card) as session:
            return compare(session.run, reference.open(), gate)


def _allow_cpu(path: Path) -> ModelCard:
    """Return the card of a file for the proof: fp16 is not for the CPU, where it is slow but right."""
    stored = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    card = card_from_text(stored[METADATA_KEY])
    return replace(card, providers=(*card.providers, "cpu"))


def predict_reference(model: Any, tiles: Pixels, description: Description, *, scale: float = 1.0) -> Floats:
    """Return the Keras model's probabilities, `(n, height, width, classes)` float32.

    Args:
        model: A `keras.Model`.
        tiles: `(n, height, width, 3)` uint8 RGB.
        description: What the model is.
        scale: Multiplies the normalised pixels.

    Raises:
        ModelError: The outputs are not what the activation promises.
    """
    inputs = to_reference_input(tiles, description, int(model.inputs[0].shape[3]))
    inputs = inputs if scale == 1 else inputs * np.float32(scale)
    values: Floats = np.asarray(model.predict(inputs, batch_size=len(inputs), verbose=0), np.float32)
    if description.clip:
        values = np.clip(values, 0, 1)
    elif description.activation == "logits":
        values = _activate(values)
    else:
        _check_promise(values, description)
    return np.concatenate([1 - values, values], axis=-1) if values.shape[-1] == 1 else values


def _map(path: Path) -> Any:
    return np.load(path, mmap_mode="r")


def _activate(logits: Floats) -> Floats:
    if logits.shape[-1] == 1:
        values = 1 / (1 + np.exp(-logits.astype(np.float64)))
        return np.asarray(values, np.float32)
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def _check_promise(values: Floats, description: Description) -> None:
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ModelError(
            f"the model's outputs run from {low:.3g} to {high:.3g}, expected 0 to 1 after "
            f"{description.activation}; say what they are with --activation"
        )
    sums = values.sum(axis=-1)
    if description.activation == "softmax" and float(np.abs(sums - 1).max()) > 1e-3:
        raise ModelError(
            f"the model's outputs sum to {sums.min():.3g} to {sums.max():.3g} at a pixel, expected 1 "
            "after softmax; say what they are with --activation"
        )
