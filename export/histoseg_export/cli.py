"""`histoseg-export`: turn a Keras model into a proven ONNX file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import click

import histoseg
from histoseg.command import run_command
from histoseg.errors import OutputError
from histoseg.helppage import HelpPage

if TYPE_CHECKING:
    from histoseg_export.describe import ExportOptions
    from histoseg_export.load import LoadOptions
    from histoseg_export.proofoptions import ProofOptions
    from histoseg_export.report import ExportResult

NORMALIZE = ("unit", "symmetric", "imagenet", "caffe", "none")
COLOR_SPACES = ("device", "sRGB")
ACTIVATIONS = ("auto", "softmax", "sigmoid", "logits")
PATIENCE_SECONDS = 2.0
GATES = (
    ("fp32_labels", 0.9999, "Gate of fp32: share of labels that agree."),
    ("fp32_off_ppm", 100.0, "Gate of fp32: ppm of probabilities off by 0.001."),
    ("fp16_labels", 0.999, "Gate of fp16: share of labels that agree."),
    ("int8_labels", 0.99, "Gate of int8: share of labels that agree."),
    ("int8_dice_drop", 0.01, "Gate of int8: most that Dice may fall."),
)
EXAMPLES = (
    "histoseg-export model.keras",
    "histoseg-export model.h5 --spacing 0.5 --classes 'background,nucleus=#1b7f3b' --tile 512",
    "histoseg-export model.keras --precision fp32,fp16,int8 --calibrate slide.svs -o nuclei.onnx",
    "histoseg-export weights.h5 --builder network.py:build --spacing 0.25 --tile 512",
)
SECTIONS = {
    "What it is": ("tile", "classes", "spacing", "normalize", "activation", "threshold", "output"),
    "Code that the file lacks": ("arch", "builder", "custom_objects"),
    "What is written": ("out", "precision", "calibrate", "conformance"),
    "Display": ("version help",),
}
MORE = (
    "--custom-objects FILE.py: a Python file of yours. Its public functions and classes stand for what the "
    "model's file names and Keras does not know: a layer class by its name, an activation by its name, and a "
    "Lambda layer by the layer's name ('lambda-1' is lambda_1), as a function of what the layer is given, or "
    "as a layer class. Code inside a model's file is never run."
)


def _gate_options(function: Callable[..., int]) -> Callable[..., int]:
    """Add a flag for each gate; their names and defaults are those of `Gates`."""
    for name, default, words in reversed(GATES):
        function = click.option(
            f"--{name.replace('_', '-')}", type=float, help=f"{words}  [default: {default:g}]"
        )(function)
    return click.option(
        "--labels-only", is_flag=True, help="fp32: judge labels alone (an argmax inside, as in SegNet)."
    )(function)


@click.command(
    name="histoseg-export",
    cls=HelpPage,
    sections=SECTIONS,
    examples=EXAMPLES,
    more=MORE,
    context_settings={"max_content_width": 100},
)
@click.argument("source", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="ONNX file.  [default: MODEL.onnx]")
@click.option("--tile", type=click.IntRange(min=16), help="Side of the square tiles, in model pixels.")
@click.option(
    "--classes", metavar="NAME=#RRGGBB,...", help="Classes, background first; colours may be left out."
)
@click.option(
    "--spacing", type=click.FloatRange(min=0, min_open=True), help="um/px the model was trained at."
)
@click.option("--normalize", type=click.Choice(NORMALIZE), help="What the model expects of its pixels.")
@click.option("--activation", type=click.Choice(ACTIVATIONS), default="auto", show_default=True,
              help="What the model's output is.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="From which probability a pixel is of the second of two classes, unless 0.5.")  # fmt: skip
@click.option("--color-space", type=click.Choice(COLOR_SPACES), default="device", show_default=True,
              help="What training pixels were in: as slides store them, or turned to sRGB.")  # fmt: skip
@click.option(
    "--output", metavar="NAME", help="Which of several outputs, or which layer, is the segmentation."
)
@click.option(
    "--signature", metavar="NAME", help="Which function of a SavedModel.  [default: serving_default]"
)
@click.option(
    "--arch", metavar="NAME", help="For weights: one of this project's networks, such as unet-w16-d4."
)
@click.option("--builder", metavar="FILE.py:FUNCTION",
              help="For weights: your function, () or (input_shape), that builds the network.")  # fmt: skip
@click.option("--custom-objects", metavar="FILE.py", type=click.Path(path_type=Path),
              help="Layers and functions that the file names and Keras lacks; see below.")  # fmt: skip
@click.option(
    "--precision", metavar="P,P,...", default="fp32", show_default=True, help="Of fp32, fp16 and int8."
)
@click.option("--calibrate", type=click.Path(path_type=Path),
              help="Slide, image, or folder of images that int8 chooses its steps by.")  # fmt: skip
@click.option("--float-layers", type=click.IntRange(min=0),
              help="Most layers that int8 may leave in float to hold its gate.  [default: 8]")  # fmt: skip
@click.option("--tiles", type=click.Path(path_type=Path),
              help="The same as --calibrate, to prove on.  [default: that, or the demo slide]")  # fmt: skip
@click.option("--conformance", metavar="DIR", type=click.Path(path_type=Path),
              help="Also make a bundle by which other programs prove that they run it right.")  # fmt: skip
@_gate_options
@click.version_option(histoseg.__version__)
def command(**options: Any) -> int:
    """Turn a Keras segmentation model into one ONNX file.

    MODEL is a .keras archive, an .h5 file of Keras 2 or 3, a SavedModel folder, or a file of weights. The
    ONNX file takes uint8 RGB, gives probabilities, and carries its model card. It is written only after it
    was proven to behave like the Keras model. Files that histoseg-train made need no options, others at
    least --spacing. Writes MODEL.report.json beside it; fp16 and int8 go to MODEL.fp16.onnx, MODEL.int8.onnx.
    """
    source, target = options["source"], options["out"] or options["source"].with_suffix(".onnx")
    if target.suffix != ".onnx":
        raise click.BadParameter(f"'{target}' has suffix '{target.suffix}', expected .onnx", param_hint="-o")
    if options["conformance"] is not None:
        _check_conformance(options)
    result = _export(source, target, options)
    _show(result)
    return 0


def main() -> None:
    """Run `histoseg-export`."""
    run_command(command)


def _export(source: Path, target: Path, options: dict[str, Any]) -> ExportResult:
    from histoseg_export.quiet import prepare_environment

    prepare_environment()
    try:
        from histoseg_export.export import export_model
    except ImportError as error:
        raise click.ClickException(f"{error}; install histoseg with its extra [export]") from error

    chosen, proof, load = _read_chosen(options), _read_proof(options), _read_load(options)
    with _progress() as on_step:
        result = export_model(source, target, chosen, load=load, proof=proof, on_step=on_step)
        if options["conformance"] is not None:
            from histoseg_export.conformance import write_bundle

            on_step("writing the conformance bundle")
            write_bundle(result.files["fp32"], options["conformance"], proof.source)
        return result


def _check_conformance(options: dict[str, Any]) -> None:
    """Find out before the work what would prevent its end."""
    if "fp32" not in options["precision"]:
        raise click.UsageError(
            f"--conformance is of the fp32 file, but --precision is {options['precision']}"
        )
    if options["conformance"].exists():
        raise OutputError(
            f"{options['conformance']}: exists already; name a folder to make with --conformance"
        )


def _read_chosen(options: dict[str, Any]) -> ExportOptions:
    from histoseg_export.classes import parse_classes
    from histoseg_export.describe import ExportOptions

    names = colors = None
    if options["classes"]:
        try:
            names, colors = parse_classes(options["classes"])
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--classes") from error
    return ExportOptions(
        tile=options["tile"],
        class_names=names,
        class_colors=colors,
        spacing_um_px=options["spacing"],
        normalization=options["normalize"],
        activation=options["activation"],
        color_space=options["color_space"],
        threshold=options["threshold"],
    )


def _read_load(options: dict[str, Any]) -> LoadOptions:
    from histoseg_export.load import LoadOptions

    return LoadOptions(
        output=options["output"],
        signature=options["signature"],
        architecture=options["arch"],
        builder=options["builder"],
        custom_objects=options["custom_objects"],
    )


def _read_proof(options: dict[str, Any]) -> ProofOptions:
    from histoseg.errors import OptionError
    from histoseg_export.gates import Gates
    from histoseg_export.proofoptions import ProofOptions

    given = {name: options[name] for name, _, _ in GATES if options[name] is not None}
    budget = {} if options["float_layers"] is None else {"float_layers": options["float_layers"]}
    try:
        return ProofOptions(
            precisions=tuple(word.strip() for word in options["precision"].split(",") if word.strip()),
            gates=Gates(**given, labels_only=options["labels_only"]),
            tiles=options["tiles"],
            calibrate=options["calibrate"],
            **budget,
        )
    except OptionError as error:
        raise click.UsageError(str(error)) from error


def _show(result: ExportResult) -> None:
    from rich.console import Console

    from histoseg_export.prooftable import build_proof_table
    from histoseg_export.report import report_path

    Console().print(build_proof_table(result.parities))
    for note in result.notes:
        click.echo(f"note: {note}")
    card, tiling = result.card, result.card.tiling
    width, height = card.patch_size_pixels
    click.echo(
        f"{len(card.class_names)} classes at {card.spacing_um_px:g} um/px, tiles {width}x{height}, "
        f"halo {tiling.halo_px}, overlap {tiling.overlap_px}, stride {tiling.stride_multiple}; "
        f"{result.seconds:.1f} s; report {report_path(result.target).name}"
    )
    for path in result.files.values():
        click.echo(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show the current step on a terminal, once the export has taken two seconds."""
    from rich.console import Console

    # its own descriptor: the other one is silenced while TensorFlow loads
    with os.fdopen(os.dup(2), "w", encoding="utf-8") as stream:
        console = Console(file=stream)
        status = console.status("starting")
        timer = Timer(PATIENCE_SECONDS, status.start)
        timer.daemon = True
        if console.is_terminal:
            timer.start()
        try:
            yield lambda step: status.update(f"{step} ...")
        finally:
            timer.cancel()
            status.stop()


if __name__ == "__main__":
    main()
