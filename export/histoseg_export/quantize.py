"""Turn an fp32 ONNX model into an int8 one: static QDQ, per channel, calibrated on real tiles, judged.

Activations are uint8 with a zero point of their own, weights int8 and symmetric with one scale for each
filter: what onnxruntime's CPU kernels are fastest with (symmetric int8 activations took 1.4 times as long on
AVX-512 VNNI). Weights use all 8 bits, which a dot product of VNNI adds up exactly; AVX2 alone adds pairs in
16 bits, which may overflow. TensorRT takes only symmetric int8 activations: such files are not for it.

Layers are left in float only when the gate asks for it: each layer's error is measured with that layer alone
in int8, and the worst go first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from histoseg.card import METADATA_KEY, ModelCard, card_to_text
from histoseg.errors import DataError, ModelError
from histoseg.session import Session, open_session
from histoseg_export.calibrate import measure_ranges
from histoseg_export.graph import Graph
from histoseg_export.int8 import fold_pixels
from histoseg_export.int8.qdq import Kernels, count_kernels, insert_qdq
from histoseg_export.parity import Expected, Parity, compare, run_singly
from histoseg_export.proofoptions import FLOAT_LAYERS
from histoseg_export.regions import WEIGHTED, find_float_nodes

if TYPE_CHECKING:
    from histoseg.arrays import Pixels
    from histoseg_export.calibrate import Ranges
    from histoseg_export.gates import Gate
    from histoseg_export.tileset import TileSet

PROVIDERS = ("cpu", "openvino")
TILES = 48
CALIBRATION_SHARE = 2 / 3
"""Of the tiles; the gate is judged on the others."""
ERROR_TILES = 2
"""Tiles on which each layer's error is measured."""


@dataclass(frozen=True)
class LayerError:
    """How much one layer alone, in int8, changes the probabilities."""

    name: str
    mean_abs: float
    """Mean `|dp|` over the measured tiles."""


@dataclass(frozen=True)
class QuantizeReport:
    """How an int8 model was made, and how far it is from the fp32 model."""

    calibration: str
    """Where the tiles came from."""
    calibration_tiles: int
    folded_convolutions: int
    """Convolutions that were folded so that int8 kernels take them; see `int8.fold_pixels`."""
    kernels: Kernels
    float_layers: tuple[LayerError, ...]
    """Layers left in float so that the gate holds, worst first."""
    layer_errors: tuple[LayerError, ...]
    """All layers, worst first; empty where the gate held at once."""
    parity: Parity
    """Against the fp32 model, on tiles that did not calibrate."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-ready document."""
        return {**asdict(self), "parity": self.parity.to_json()}


def quantize(
    model: onnx.ModelProto,
    card: ModelCard,
    tile_set: TileSet,
    gate: Gate,
    *,
    float_layers: int = FLOAT_LAYERS,
    on_step: Callable[[str], None] = lambda step: None,
) -> tuple[onnx.ModelProto, ModelCard, QuantizeReport]:
    """Quantize a model to int8.

    The same arguments give the same bytes.

    Args:
        model: An fp32 model as `convert_model` returns it.
        card: Its card.
        tile_set: Real tiles, some `TILES` of them: two thirds calibrate, the others judge.
        gate: What the result should hold.
        float_layers: The most layers that may stay in float for that.
        on_step: Told what is being done, in words for people.

    Returns:
        The int8 model without a card, its card, and the report; `report.parity.passed` says whether the gate
        holds, see `prove.require_parity`.

    Raises:
        DataError: There are fewer than two tiles.
        ModelError: The model has no layer that can be quantized, or onnxruntime refuses the result.
    """
    calibration, judge = _split(tile_set)
    prepared, folded = _prepare(model)
    on_step(f"calibrating on {len(calibration)} tiles")
    ranges = measure_ranges(prepared, calibration)
    with tempfile.TemporaryDirectory() as folder:
        search = _Search(prepared, ranges, card, Path(folder))
        on_step("judging int8")
        search.expect(model, judge)
        found = search.find(gate, float_layers, on_step)
    report = QuantizeReport(
        calibration=tile_set.words,
        calibration_tiles=len(calibration),
        folded_convolutions=folded,
        kernels=count_kernels(found.model),
        float_layers=found.kept,
        layer_errors=found.errors,
        parity=found.parity,
    )
    return found.model, _describe(card, report), report


def _split(tile_set: TileSet) -> tuple[Pixels, TileSet]:
    count = len(tile_set.tiles)
    if count < 2:
        raise DataError(f"{tile_set.words}: {count} tiles, expected at least 2: some calibrate, others judge")
    cut = min(count - 1, max(1, round(count * CALIBRATION_SHARE)))
    truth = None if tile_set.truth is None else tile_set.truth[cut:]
    return tile_set.tiles[:cut], replace(tile_set, tiles=tile_set.tiles[cut:], truth=truth)


def _prepare(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Return a copy with its convolutions folded and its shapes inferred, and how many were folded."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy.graph)
    if not any(node.op_type in WEIGHTED for node in graph.nodes):
        raise ModelError("the model has no convolution, expected some to quantize; use its fp32 file")
    inferred = onnx.shape_inference.infer_shapes(copy).graph
    shapes = {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    count = fold_pixels(graph, shapes)
    graph.store()
    return onnx.shape_inference.infer_shapes(copy, strict_mode=True), count


def _describe(card: ModelCard, report: QuantizeReport) -> ModelCard:
    kernels = report.kernels
    quantization = {
        "format": "static QDQ, uint8 activations, int8 weights symmetric per channel",
        "ranges": "min-max",
        "calibration": report.calibration,
        "calibration_tiles": report.calibration_tiles,
        "int8_convolutions": f"{kernels.int8_convolutions} of {kernels.convolutions}",
        "float_layers": [error.name for error in report.float_layers],
        "processors": "with an int8 dot product (VNNI); AVX2 alone may round otherwise and gains little",
    }
    provenance = {**card.provenance, "quantization": quantization}
    return replace(card, precision="int8", providers=PROVIDERS, parity={}, provenance=provenance)


@dataclass(frozen=True)
class _Found:
    """An int8 model, and what it took."""

    model: onnx.ModelProto
    parity: Parity
    kept: tuple[LayerError, ...]
    """Layers in float."""
    errors: tuple[LayerError, ...]
    """Of all layers; empty where nothing asked for them."""


class _Search:
    """Builds int8 models of one network, and measures them."""

    def __init__(self, model: onnx.ModelProto, ranges: Ranges, card: ModelCard, folder: Path) -> None:
        self._model = model
        self._ranges = ranges
        self._card = card  # with the fp32 precision: nobody needs to be warned of int8 here
        self._path = folder / "model.onnx"
        self._expected: Expected | None = None
        self._float = find_float_nodes(Graph(model.graph))
        self._layers: dict[str, list[str]] = {}
        for node in model.graph.node:
            if node.op_type in WEIGHTED and node.name not in self._float:
                self._layers.setdefault(_layer_of(node.name), []).append(node.name)

    def expect(self, model: onnx.ModelProto, judge: TileSet) -> None:
        """Run the fp32 model on the tiles that judge."""
        with self._open(model) as session:
            probabilities = run_singly(session.run, judge.tiles)
        card = self._card
        self._expected = Expected(
            "fp32",
            judge.words,
            card.class_names,
            judge.tiles,
            judge.truth,
            probabilities,
            threshold=card.output.threshold,
        )

    def find(self, gate: Gate, most: int, on_step: Callable[[str], None]) -> _Found:
        """Leave layers in float, worst first and `most` at most, until the gate holds."""
        model, parity = self.build_and_judge((), gate)
        errors = () if parity.passed or not most else self.measure_layers(on_step)
        kept: tuple[LayerError, ...] = ()
        while not parity.passed and len(kept) < min(most, len(errors)):
            kept = errors[: len(kept) + 1]
            on_step(f"leaving {kept[-1].name} in float")
            model, parity = self.build_and_judge([error.name for error in kept], gate)
        return _Found(model, parity, kept, errors)

    def build_and_judge(self, kept: Collection[str], gate: Gate) -> tuple[onnx.ModelProto, Parity]:
        """Return the int8 model with some layers in float, and its figures."""
        assert self._expected is not None
        in_float = self._float.union(*(self._layers[layer] for layer in kept))
        model = insert_qdq(self._model, self._ranges, in_float=in_float)
        with self._open(model) as session:
            return model, compare(session.run, self._expected, gate)

    def measure_layers(self, on_step: Callable[[str], None]) -> tuple[LayerError, ...]:
        """Return the error that each layer makes when it alone is in int8, worst first."""
        assert self._expected is not None
        tiles, expected = self._expected.tiles[:ERROR_TILES], self._expected.probabilities[:ERROR_TILES]
        errors = []
        for index, (layer, nodes) in enumerate(self._layers.items()):
            on_step(f"measuring the error of layer {index + 1} of {len(self._layers)}")
            others = [node for name, own in self._layers.items() if name != layer for node in own]
            model = insert_qdq(self._model, self._ranges, in_float=self._float.union(others), only=nodes)
            with self._open(model) as session:
                difference = np.abs(run_singly(session.run, tiles) - expected)
            errors.append(LayerError(layer, float(difference.mean(dtype=np.float64))))
        return tuple(sorted(errors, key=lambda error: (-error.mean_abs, error.name)))

    @contextmanager
    def _open(self, model: onnx.ModelProto) -> Iterator[Session]:
        stored = onnx.ModelProto()
        stored.CopyFrom(model)
        helper.set_model_props(stored, {METADATA_KEY: card_to_text(self._card)})
        self._path.write_bytes(stored.SerializeToString())
        with open_session(self._path, provider="cpu") as session:
            yield session


def _layer_of(node: str) -> str:
    """Return the Keras layer's name in a node's."""
    return node.rpartition("/")[0] or node
