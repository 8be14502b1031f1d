"""The files of one export: fp32 as converted, fp16 and int8 made of it, each with its card and its proof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from histoseg.card import METADATA_KEY, ModelCard, Precision, card_to_text
from histoseg_export.gates import TOLERANCE, relax_gate
from histoseg_export.half import to_half
from histoseg_export.prove import prove_file
from histoseg_export.quantize import TILES, QuantizeReport, quantize
from histoseg_export.tileset import open_tile_set

if TYPE_CHECKING:
    from histoseg_export.gates import Floor, Gate
    from histoseg_export.parity import Parity
    from histoseg_export.proofoptions import ProofOptions
    from histoseg_export.prove import Reference

CALIBRATION_SEED = 23


@dataclass(frozen=True)
class Variant:
    """A model in one precision, proven when it has a parity."""

    model: onnx.ModelProto
    card: ModelCard
    quantization: QuantizeReport | None = None
    parity: Parity | None = None

    @property
    def precision(self) -> Precision:
        """Return the precision its card states."""
        return self.card.precision

    @property
    def passed(self) -> bool:
        """Whether it was proven, and its gate held."""
        return self.parity is not None and self.parity.passed

    @property
    def operators(self) -> dict[str, int]:
        """Return the nodes of the graph, by kind."""
        return dict(Counter(node.op_type for node in self.model.graph.node).most_common())


def make_variant(
    fp32: Variant, precision: Precision, options: ProofOptions, on_step: Callable[[str], None]
) -> Variant:
    """Make a file of another precision.

    Args:
        fp32: What it is made of.
        precision: `"fp16"` or `"int8"`.
        options: Where int8 finds its tiles, what it should hold, and how many layers it may leave in float.
        on_step: Told what is being done.

    Raises:
        DataError, SlideError: The tiles for int8 cannot be had.
        ModelError: The model cannot be had in this precision.
    """
    on_step(f"making {precision}")
    if precision == "fp16":
        return Variant(*to_half(fp32.model, fp32.card))
    tile_set = open_tile_set(options.calibrate, fp32.card, TILES, seed=CALIBRATION_SEED)
    gate, budget = options.gates.pick("int8"), options.float_layers
    return Variant(*quantize(fp32.model, fp32.card, tile_set, gate, float_layers=budget, on_step=on_step))


def prove_variant(variant: Variant, reference: Reference, gate: Gate, folder: Path) -> Variant:
    """Run a variant on the proof's tiles in a fresh process; its card takes the figures down.

    Raises:
        ModelError: It cannot be run.
    """
    path = folder / f"{variant.precision}.onnx"
    path.write_bytes(pack_variant(variant))
    parity = prove_file(path, reference, gate)
    return replace(variant, parity=parity, card=replace(variant.card, parity=parity.to_card()))


def judge_again(variant: Variant, floor: Floor) -> Variant:
    """Judge a proven variant by what its source model's own rounding allows."""
    assert variant.parity is not None
    parity = replace(variant.parity, floor=floor, gate=relax_gate(variant.parity.gate, floor))
    return replace(variant, parity=parity, card=replace(variant.card, parity=parity.to_card()))


def explain_floor(variant: Variant) -> tuple[str, ...]:
    """Say that a model was judged by its own rounding, if it was."""
    floor = None if variant.parity is None else variant.parity.floor
    if floor is None:
        return ()
    return (
        f"rounding alone changes {1 - floor.label_agreement:.3%} of the Keras model's labels and "
        f"{floor.off_ppm / 1e4:.1f} % of its probabilities by more than {TOLERANCE:g}, as where an argmax "
        "(pooling indices) turns on near-ties: the gate allows three times that",
    )


def pack_variant(variant: Variant) -> bytes:
    """Return an ONNX file with its card inside; a variant has one sequence of bytes."""
    helper.set_model_props(variant.model, {METADATA_KEY: card_to_text(variant.card)})
    packed: bytes = variant.model.SerializeToString(deterministic=True)
    return packed
