"""Export one Keras model: load, describe, convert, prove, measure; write when all of it held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from histoseg.card import METADATA_KEY, ModelCard, Tiling, card_to_text
from histoseg.errors import OutputError
from histoseg.providers import choose_providers
from histoseg.session import open_session
from histoseg_export.convert import convert_model
from histoseg_export.describe import ExportOptions, build_card, describe_model, read_own_metadata
from histoseg_export.load import LoadOptions, load_model
from histoseg_export.probe import Measurement, explain_measurement, measure_tiling, plan_tiling
from histoseg_export.prove import predict_reference, prove, require_parity
from histoseg_export.report import ExportResult, describe_provenance, write_report
from histoseg_export.resized import compare_sizes, explain_resizing
from histoseg_export.retarget import accepts_tile, fix_size
from histoseg_export.strides import read_stride
from histoseg_export.tiles import cut_tiles, open_source

if TYPE_CHECKING:
    from histoseg.arrays import Pixels
    from histoseg.session import Session

PROOF_TILES = 16
PROBE_IMAGES = (4, 12)
"""Fewest and most images that halo and stride are measured on."""
PROBE_PIXELS = 8 * 512**2
SEED = 20


def export_model(
    source: Path,
    target: Path,
    options: ExportOptions,
    *,
    load: LoadOptions | None = None,
    tiles: Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> ExportResult:
    """Write `target`, an ONNX file with its card inside, and `target`'s `.report.json` beside it.

    Args:
        source: A `.keras` or `.h5` file, or a SavedModel folder.
        target: The `.onnx` file; it appears whole, or not at all.
        options: What the file does not say about itself.
        load: How to read a file that does not say it itself.
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
    loaded = load_model(source, replace(load or LoadOptions(), input_size=_input_size(options)))
    model = loaded.model
    description = describe_model(model, read_own_metadata(source), options)
    description = replace(description, notes=(*loaded.notes, *description.notes))
    images, words = open_source(tiles, description.tile)
    on_step("converting")
    reference = model if accepts_tile(model, description.tile) else fix_size(model, description.tile)
    graph = convert_model(model, description)
    provenance = {**describe_provenance(source, description), "reader": loaded.reader}
    draft = build_card(description, tiling=Tiling(1, 0, 0), parity={}, provenance=provenance)
    with _temporary(target) as part:
        _save(part, graph, draft)
        with open_session(part, provider="cpu") as session:
            on_step(f"proving on {PROOF_TILES} tiles")
            cuts = cut_tiles(images, description.tile, PROOF_TILES, seed=SEED)
            parity = prove(reference, session, cuts, description=description, source=words)
            if reference is not model:
                parity = replace(parity, reference="keras, rebuilt for this tile")
            require_parity(parity, source.name)
            on_step("measuring halo and stride")
            measured = _measure(session, graph, images, description.tile)
            resized = compare_sizes(
                model, reference, images, partial(predict_reference, description=description),
                stride=measured.stride_multiple, halo=measured.halo_px, seed=SEED + 2,
            )  # fmt: skip
        card = replace(
            draft,
            tiling=plan_tiling(measured, description.tile),
            parity=parity.to_card(),
            provenance={
                **provenance,
                "measured": {**asdict(measured), "source": words, "agreement_with_own_size": resized},
            },
        )
        _save(part, graph, card)
        operators = dict(Counter(node.op_type for node in graph.graph.node).most_common())
        notes = (
            *description.notes,
            *explain_resizing(resized, description.tile),
            *explain_measurement(measured, card),
        )
        seconds = perf_counter() - start
        result = ExportResult(target, card, parity, measured, operators, notes, seconds)
        _publish(part, result)
    return result


def _check_target(target: Path) -> None:
    """Find out before the work what would prevent its end."""
    choose_providers("cpu")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: its folder {target.parent} does not exist; make it, or give another -o")


def _measure(
    session: Session, graph: onnx.ModelProto, images: list[Pixels], tile: tuple[int, int]
) -> Measurement:
    wide = (tile[0] + tile[0] // 2, tile[1] + tile[1] // 2)
    count = min(max(PROBE_PIXELS // (tile[0] * tile[1]), PROBE_IMAGES[0]), PROBE_IMAGES[1])
    cuts = cut_tiles(images, wide, count, seed=SEED + 1)
    return measure_tiling(session.run, cuts, tile=tile, graph_stride=read_stride(graph))


def _input_size(options: ExportOptions) -> tuple[int, int] | None:
    return None if options.tile is None else (options.tile, options.tile)


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
