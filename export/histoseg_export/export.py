"""Export one Keras model: load, describe, convert, prove, measure; write when all of it held."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from histoseg.atomic import write_whole
from histoseg.card import ModelCard, Tiling
from histoseg.errors import OutputError
from histoseg.providers import choose_providers
from histoseg.session import open_session
from histoseg_export.convert import convert_model
from histoseg_export.describe import (
    Description,
    ExportOptions,
    build_card,
    describe_model,
    read_own_metadata,
)
from histoseg_export.load import LoadOptions, load_model
from histoseg_export.parity import run_singly
from histoseg_export.probe import Measurement, explain_measurement, measure_tiling, plan_tiling
from histoseg_export.proofoptions import ProofOptions
from histoseg_export.prove import measure_floor, predict_reference, predict_source, require_parity
from histoseg_export.report import ExportResult, describe_provenance, write_report
from histoseg_export.resized import compare_sizes, explain_resizing
from histoseg_export.retarget import accepts_tile, fix_size
from histoseg_export.strides import read_stride
from histoseg_export.tileset import open_tile_set
from histoseg_export.variants import (
    Variant,
    explain_floor,
    judge_again,
    make_variant,
    pack_variant,
    prove_variant,
)

if TYPE_CHECKING:
    from histoseg.arrays import Pixels

    OnStep = Callable[[str], None]

PROOF_TILES = 16
PROBE_IMAGES = (4, 12)
"""Fewest and most images that halo and stride are measured on."""
PROBE_PIXELS = 8 * 512**2
RESIZED_IMAGES = 4
SEED = 20


@dataclass(frozen=True)
class _Source:
    """A model as it came, and what is known of it."""

    path: Path
    model: Any
    load: LoadOptions
    description: Description
    reader: str


def export_model(
    source: Path,
    target: Path,
    options: ExportOptions,
    *,
    load: LoadOptions | None = None,
    proof: ProofOptions | None = None,
    on_step: OnStep = lambda step: None,
) -> ExportResult:
    """Write ONNX files with their cards inside, and `target`'s `.report.json` beside them.

    Args:
        source: A `.keras` or `.h5` file, or a SavedModel folder.
        target: The fp32 `.onnx` file; the others' names are made of it. All files appear, or none.
        options: What the file does not say about itself.
        load: How to read a file that does not say it itself.
        proof: Which precisions to write, and what they must hold.
        on_step: Told what is being done, in words for people.

    Raises:
        ModelError: The model cannot be loaded, described or converted.
        ParityError: A file does not behave like the Keras model; the report is written, and no file.
        DataError, SlideError: Tiles cannot be had.
        OutputError: A file cannot be written.
        ProviderError: onnxruntime is not installed.
    """
    start = perf_counter()
    proof = proof or ProofOptions()
    _check_target(target)
    on_step(f"loading {source.name}")
    read = _read_source(source, options, load or LoadOptions())
    on_step("converting")
    model = convert_model(read.model, read.description)
    provenance = {**describe_provenance(source, read.description), "reader": read.reader}
    card = build_card(read.description, tiling=Tiling(1, 0, 0), parity={}, provenance=provenance)
    with tempfile.TemporaryDirectory(prefix="histoseg-") as folder:
        variants, measured, notes = _make_files(read, Variant(model, card), proof, Path(folder), on_step)
    files = proof.name_files(target)
    result = ExportResult(target, files, variants, measured, notes, perf_counter() - start)
    if not result.passed:
        write_report(result)
    for parity in result.parities:
        require_parity(parity, source.name)
    _publish(result)
    return result


def _check_target(target: Path) -> None:
    """Find out before the work what would prevent its end."""
    choose_providers("cpu")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: its folder {target.parent} does not exist; make it, or give another -o")


def _read_source(path: Path, options: ExportOptions, load: LoadOptions) -> _Source:
    size = None if options.tile is None else (options.tile, options.tile)
    load = replace(load, input_size=size)
    loaded = load_model(path, load)
    description = describe_model(loaded.model, read_own_metadata(path), options)
    description = replace(description, notes=(*loaded.notes, *description.notes))
    return _Source(path, loaded.model, load, description, loaded.reader)


def _make_files(
    read: _Source, fp32: Variant, proof: ProofOptions, folder: Path, on_step: OnStep
) -> tuple[tuple[Variant, ...], Measurement | None, tuple[str, ...]]:
    """Prove fp32, measure it, make the others of it and prove them; stop where fp32 fails."""
    on_step(f"running the Keras model on {PROOF_TILES} tiles, in a process of its own")
    tile_set = open_tile_set(proof.source, fp32.card, PROOF_TILES, seed=SEED)
    reference = predict_source(read.path, read.load, read.description, tile_set, folder)
    on_step("proving fp32")
    fp32 = prove_variant(fp32, reference, proof.gates.pick("fp32"), folder)
    if not fp32.passed:
        on_step("measuring how the Keras model itself rounds")
        fp32 = judge_again(fp32, measure_floor(read.path, read.load, read.description, reference))
    if not fp32.passed:
        return (fp32,), None, read.description.notes
    on_step("measuring halo and stride")
    fp32, measured, notes = _measure(read, fp32, proof, folder)
    variants = [fp32]
    for precision in proof.precisions:
        if precision != "fp32":
            variant = make_variant(fp32, precision, proof, on_step)
            on_step(f"proving {precision}")
            variants.append(prove_variant(variant, reference, proof.gates.pick(precision), folder))
    return tuple(variants), measured, notes


def _measure(
    read: _Source, fp32: Variant, proof: ProofOptions, folder: Path
) -> tuple[Variant, Measurement, tuple[str, ...]]:
    """Return the model with its tiling in the card, what was measured, and what a person should know."""
    tile = read.description.tile
    wide = (tile[0] + tile[0] // 2, tile[1] + tile[1] // 2)
    count = min(max(PROBE_PIXELS // (tile[0] * tile[1]), PROBE_IMAGES[0]), PROBE_IMAGES[1])
    cuts, words = _cut(proof, fp32.card, wide, count, seed=SEED + 1)
    with open_session(folder / "fp32.onnx", provider="cpu") as session:
        run = partial(run_singly, session.run)
        threshold, graph_stride = read.description.threshold, read_stride(fp32.model)
        measured = measure_tiling(run, cuts, tile=tile, graph_stride=graph_stride, threshold=threshold)
    resized = None if accepts_tile(read.model, tile) else _compare_own_size(read, fp32, measured, proof)
    card = replace(
        fp32.card,
        tiling=plan_tiling(measured, tile),
        provenance={
            **fp32.card.provenance,
            "measured": {**asdict(measured), "source": words, "agreement_with_own_size": resized},
        },
    )
    notes = (
        *read.description.notes,
        *explain_floor(fp32),
        *explain_resizing(resized, tile),
        *explain_measurement(measured, card),
    )
    return replace(fp32, card=card), measured, notes


def _compare_own_size(
    read: _Source, fp32: Variant, measured: Measurement, proof: ProofOptions
) -> float | None:
    """Return on how many pixels the network agrees with itself as it came, at its own size."""
    tile = read.description.tile
    own = read.model.inputs[0].shape
    sides = (max(own[2] or 0, tile[0]), max(own[1] or 0, tile[1]))
    cuts, _ = _cut(proof, fp32.card, sides, RESIZED_IMAGES, seed=SEED + 2)
    return compare_sizes(
        read.model,
        fix_size(read.model, tile),
        cuts,
        partial(predict_reference, description=read.description),
        stride=measured.stride_multiple,
        halo=measured.halo_px,
        threshold=read.description.threshold,
    )


def _cut(
    proof: ProofOptions, card: ModelCard, size: tuple[int, int], count: int, *, seed: int
) -> tuple[Pixels, str]:
    tile_set = open_tile_set(proof.source, card, count, seed=seed, size=size)
    return tile_set.tiles, tile_set.words


def _publish(result: ExportResult) -> None:
    """Write what was asked for: whole, or not at all."""
    variants = {variant.precision: variant for variant in result.variants}
    try:
        # the files get their names when all of them are written
        with ExitStack() as stack:
            for precision, path in result.files.items():
                part = stack.enter_context(write_whole(path))
                part.write_bytes(pack_variant(variants[precision]))
    except OSError as error:
        # of a rename, the second name is that of the file
        found = error.filename2 or path
        raise OutputError(f"{found}: cannot be written ({error.strerror})") from error
    write_report(result)
