"""Export one Keras model: load, describe, convert, prove, measure; write when all of it held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

from histoseg.card import METADATA_KEY, ModelCard, Tiling, card_to_text
from histoseg.errors import OutputError
from histoseg.session import choose_providers, open_session
from histoseg_export.convert import convert_model, fix_size
from histoseg_export.describe import ExportOptions, build_card, describe_model, read_own_metadata
from histoseg_export.load import load_model
from histoseg_export.probe import Measurement, measure_tiling, plan_tiling, read_strides
from histoseg_export.prove import prove, require_parity
from histoseg_export.report import ExportResult, describe_provenance, write_report
from histoseg_export.tiles import cut_tiles, open_source

if TYPE_CHECKING:
    from histoseg.arrays import Pixels
    from histoseg.session import Session

PROOF_TILES = 16
PROBE_IMAGES = 8
SEED = 20
NOTEWORTHY = 5e-3
"""Mean `|dp|` in the middle of tiles from which on a person is told."""


def export_model(
    source: Path,
    target: Path,
    options: ExportOptions,
    *,
    tiles: Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> ExportResult:
    """Write `target`, an ONNX file with its card inside, and `target`'s `.report.json` beside it.

    Args:
        source: A `.keras` or whole-model `.h5` file.
        target: The `.onnx` file; it appears whole, or not at all.
        options: What the file does not say about itself.
        tiles: An image or a folder of images to prove on; tiles of the demo slide when `None`.
        on_step: Told what is being done, in words for people.

    Raises:
        ModelError: The model cannot be loaded, described or converted.
        ParityError: The ONNX file does not behave like the Keras model.
        DataError: `tiles` cannot be read.
        OutputError: `target` cannot be written.
        ProviderError: onnxruntime is not installed.
    """
    start = perf_counter()
    _check_target(target)
    on_step(f"loading {source.name}")
    model = load_model(source)
    description = describe_model(model, read_own_metadata(source), options)
    images, words = open_source(tiles, description.tile)
    on_step("converting")
    fixed = fix_size(model, description.tile)
    graph = convert_model(fixed, description)
    provenance = describe_provenance(source, description)
    draft = build_card(description, tiling=Tiling(1, 0, 0), parity={}, provenance=provenance)
    with _temporary(target) as part:
        _save(part, graph, draft)
        with open_session(part, provider="cpu") as session:
            on_step(f"proving on {PROOF_TILES} tiles")
            cuts = cut_tiles(images, description.tile, PROOF_TILES, seed=SEED)
            reference = model if _accepts(model, description.tile) else fixed
            parity = prove(reference, session, cuts, description=description, source=words)
            if reference is fixed:
                parity = replace(parity, reference="keras, rebuilt for this tile")
            require_parity(parity, source.name)
            on_step("measuring halo and stride")
            measured = _measure(session, graph, images, description.tile)
        card = replace(
            draft,
            tiling=plan_tiling(measured, description.tile),
            parity=parity.to_json(),
            provenance={**provenance, "measured": {**asdict(measured), "source": words}},
        )
        _save(part, graph, card)
        operators = dict(Counter(node.op_type for node in graph.graph.node).most_common())
        notes = (*description.notes, *explain_measurement(measured, card))
        seconds = perf_counter() - start
        result = ExportResult(target, card, parity, measured, operators, notes, seconds)
        _publish(part, result)
    return result


def explain_measurement(measured: Measurement, card: ModelCard) -> tuple[str, ...]:
    """Return what a person should know about how tiles of this model join, in sentences."""
    notes = []
    width, height = card.patch_size_pixels
    if measured.global_context:
        notes.append(
            "the model looks at the whole tile: neighbouring tiles may disagree, whatever their overlap"
        )
    elif measured.residual_mean_abs > NOTEWORTHY or card.tiling.halo_px < measured.halo_px:
        notes.append(
            f"tiles of {width}x{height} px are small for this network: "
            f"in their middle {measured.residual_labels:.1%} of labels still depend on where the tile lies; "
            "a larger --tile lessens that"
        )
    if not measured.stride_confirmed:
        notes.append(
            f"stride multiple {measured.stride_multiple} is read off the graph; shifting did not confirm it"
        )
    return tuple(notes)


def _check_target(target: Path) -> None:
    """Find out before the work what would prevent its end."""
    choose_providers("cpu")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: its folder {target.parent} does not exist; make it, or give another -o")


def _measure(
    session: Session, graph: onnx.ModelProto, images: list[Pixels], tile: tuple[int, int]
) -> Measurement:
    wide = (tile[0] + tile[0] // 2, tile[1] + tile[1] // 2)
    cuts = cut_tiles(images, wide, PROBE_IMAGES, seed=SEED + 1)
    return measure_tiling(session.run, cuts, tile=tile, graph_strides=read_strides(graph, tile))


def _accepts(model: Any, tile: tuple[int, int]) -> bool:
    _, height, width, _ = model.inputs[0].shape
    return width in (None, tile[0]) and height in (None, tile[1])


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Give a path beside `target` that is gone afterwards, whatever happened."""
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _save(path: Path, graph: onnx.ModelProto, card: ModelCard) -> None:
    helper.set_model_props(graph, {METADATA_KEY: card_to_text(card)})
    try:
        path.write_bytes(graph.SerializeToString(deterministic=True))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def _publish(part: Path, result: ExportResult) -> None:
    try:
        part.replace(result.path)
        write_report(result)
    except OSError as error:
        raise OutputError(f"{result.path}: cannot be written ({error.strerror})") from error
