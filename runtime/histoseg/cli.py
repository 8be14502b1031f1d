"""`histoseg-run`: segment whole-slide images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

import histoseg
from histoseg.card import Blend
from histoseg.command import run_command
from histoseg.errors import OptionError, OutputError
from histoseg.helppage import HelpPage

if TYPE_CHECKING:
    from histoseg.fleet import ModelChoice, Order, SlideSource
    from histoseg.options import RunOptions

EXAMPLES = (
    "histoseg-run --demo",
    "histoseg-run slides/ -o results -m model.onnx --provider cuda --jobs 2",
)
# Headings of the help, and the options below each; those of one string share a line.
SECTIONS = {
    "Input and output": ("model", "card", "out", "overwrite", "truth", "roi", "demo"),
    "Segmentation": (
        "mpp", "allow_coarse", "blend", "overlap", "threshold", "no_tissue", "probabilities",
        "dicom_seg", "objects", "min_area_um2", "simplify",
    ),
    "Hardware": ("provider", "threads", "batch", "max_memory", "jobs", "dask"),
    "Display": ("json", "quiet", "version help"),
}  # fmt: skip
PROVIDER_NAMES = ("auto", "cpu", "cuda", "tensorrt", "openvino")


def _check_provider(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from histoseg.providers import known_provider

    if not known_provider(value):
        names = ", ".join(PROVIDER_NAMES)
        raise click.BadParameter(
            f"'{value}' is no provider, expected {names} or a name that onnxruntime knows"
        )
    return value


def _complete_provider(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in PROVIDER_NAMES if name.startswith(incomplete)]


def _check_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    from histoseg.memory import parse_bytes

    try:
        return parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


PATH = click.Path(path_type=Path)
POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command(
    name="histoseg-run",
    cls=HelpPage,
    sections=SECTIONS,
    examples=EXAMPLES,
    context_settings={"max_content_width": 100},
)
@click.argument("slides", nargs=-1, type=click.Path(), metavar="SLIDE...")
@click.option("-m", "--model", type=PATH, metavar="FILE", help="ONNX model.  [default: nuclei, built in]")
@click.option("--card", type=PATH, metavar="FILE", help="Model card (JSON) for a model without one.")
@click.option("-o", "--out", type=PATH, metavar="FOLDER", help="Folder for results.  [default: histoseg-out]")
@click.option("--overwrite", is_flag=True, help="Run finished slides again, from the beginning.")
@click.option("--truth", type=PATH, metavar="PATH", help="Mask, GeoJSON or XML, or a folder of them: Dice.")
@click.option("--roi", type=PATH, metavar="FILE", help="Mask, GeoJSON or XML: runs only inside.")
@click.option("--demo", is_flag=True, help="Draw a slide with known nuclei, segment it, show Dice.")
@click.option("--mpp", type=POSITIVE, metavar="UM", help="um/px of the slide, over its own.")
@click.option("--allow-coarse", is_flag=True, help="Enlarge a slide too coarse for the model.")
@click.option("--blend", type=click.Choice(get_args(Blend)), metavar="NAME",
              help=f"How tiles join: {', '.join(get_args(Blend))}.")  # fmt: skip
@click.option("--overlap", type=click.IntRange(min=0), metavar="PX", help="Pixels that tiles share.")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="P",
              help="Probability of the second of two classes.")  # fmt: skip
@click.option("--no-tissue", is_flag=True, help="Run every tile, tissue or not.")
@click.option("--probabilities", is_flag=True, help="Write probabilities.tif.")
@click.option("--dicom-seg", is_flag=True, help="Write segmentation.dcm, of DICOM slides.")
@click.option("--objects/--no-objects", default=True, help="Write objects.geojson.gz, for QuPath.")
@click.option("--min-area-um2", type=click.FloatRange(min=0), default=0.0, metavar="A",
              help="Leave smaller objects out.")  # fmt: skip
@click.option("--simplify/--no-simplify", default=True, help="Smooth the pixel steps of outlines.")
@click.option("--provider", default="auto", callback=_check_provider, metavar="NAME",
              shell_complete=_complete_provider,
              help=f"{', '.join(PROVIDER_NAMES)}: used or refused.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 256), metavar="N",
              help="CPU threads.  [default: all; few on a GPU]")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 1024), metavar="N", help="Tiles at a time.")
@click.option("--max-memory", metavar="SIZE", callback=_check_size, help="Stay below, such as 1GiB.")
@click.option("--jobs", type=click.IntRange(1, 256), default=1, metavar="N", help="Slides at a time.")
@click.option("--dask", metavar="ADDRESS", help="Run on the workers of this Dask scheduler.")
@click.option("--json", is_flag=True, help="Show events, one JSON object a line.")
@click.option("-q", "--quiet", is_flag=True, help="Show failures alone.")
@click.version_option(histoseg.__version__, help="Show the version;")
@click.help_option(help="or this page.")
def command(**options: Any) -> int:
    """Segment whole-slide images with an ONNX model. Research use only. SLIDE is a slide, a folder, a
    pattern or a list (.txt, .csv). Writes OUT/<slide>/ with labels.tif, objects.geojson.gz, overlay.png,
    report.html and report.json; of several slides a summary, too.
    """  # noqa: D205 - the help is one paragraph
    _refuse_file(options["out"])
    if options["demo"]:
        return _run_demo(options)
    from histoseg.fleet import find_slides

    with _as_usage():
        sources = find_slides(options["slides"], truth=options["truth"])
    slides = sources.slides
    if options["roi"] and len(slides) > 1:
        raise click.UsageError(f"--roi is a region of one slide, but there are {len(slides)}")
    named = [str(slide.path) for slide in slides] == [str(Path(word)) for word in options["slides"]]
    order = _read_order(options, options["out"] or Path("histoseg-out"))
    return _run(slides, options, order, notes=sources.passed_over, summary=len(slides) > 1 or not named)


def _refuse_file(out: Path | None) -> None:
    if out is not None and out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file, expected a folder; choose another -o")


def expand_slides(patterns: Sequence[str]) -> list[Path]:
    """Return the files that paths and globs name, in order and once each.

    Raises:
        click.UsageError: There is none, or two would write to the same folder.
        SlideError: A glob matches nothing.
    """
    from histoseg.fleet import expand_paths

    with _as_usage():
        return expand_paths(patterns)


def _run(
    slides: Sequence[SlideSource],
    options: dict[str, Any],
    order: Order,
    *,
    notes: Sequence[str] = (),
    summary: bool = False,
) -> int:
    """Run slides, show it, and return the exit code."""
    from histoseg.fleet import format_failures, run_fleet
    from histoseg.terminal import PlainView, open_view

    if options["dask"] and options["jobs"] > 1:
        raise click.UsageError("--jobs is for this machine, but --dask runs on a cluster; give one of them")
    with open_view(as_json=options["json"], quiet=options["quiet"]) as view, _as_usage():
        for note in notes:
            view.handle({"event": "note", "slide": None, "text": note})
        rows = run_fleet(
            slides,
            _choose_model(options),
            order,
            view.handle,
            jobs=options["jobs"],
            dask=options["dask"],
            summary=summary,
        )
    failed = any(row["status"] == "failed" for row in rows)
    several = summary and len(slides) > 1
    if failed and several and isinstance(view, PlainView) and not options["quiet"]:
        click.echo(format_failures(rows))  # a terminal has shown its own table
    return 1 if failed else 0


@contextmanager
def _as_usage() -> Iterator[None]:
    try:
        yield
    except OptionError as error:
        raise click.UsageError(str(error)) from error


def _choose_model(options: dict[str, Any]) -> ModelChoice:
    from histoseg.fleet import ModelChoice
    from histoseg.models import choose_default_model, default_model

    model = options["model"]
    if model is None:
        # workers of a cluster may have other processors than this machine, and must all run the same file
        model = default_model() if options["dask"] else choose_default_model(options["provider"])
    return ModelChoice(model, options["provider"], options["card"], options["threads"])


def _read_order(options: dict[str, Any], out: Path) -> Order:
    from histoseg.fleet import Order

    return Order(out, _read_options(options), roi=options["roi"], overwrite=options["overwrite"])


def _read_options(options: dict[str, Any]) -> RunOptions:
    from histoseg.options import RunOptions

    return RunOptions(
        mpp=options["mpp"],
        allow_coarse=options["allow_coarse"],
        blend=options["blend"],
        overlap_px=options["overlap"],
        threshold=options["threshold"],
        tissue=not options["no_tissue"],
        batch_size=options["batch"],
        max_memory=options["max_memory"],
        probabilities=options["probabilities"],
        dicom_seg=options["dicom_seg"],
        objects=options["objects"],
        min_area_um2=options["min_area_um2"],
        simplify=options["simplify"],
    )


def _run_demo(options: dict[str, Any]) -> int:
    from histoseg.demo import write_demo_slide
    from histoseg.fleet import SlideSource

    if options["slides"] or options["truth"] or options["roi"]:
        raise click.UsageError(
            "--demo draws its own slide and truth, but a SLIDE, --truth or --roi was given"
        )
    out = options["out"] or Path("histoseg-demo")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made a folder ({error.strerror}); choose another -o") from error
    silent = options["json"] or options["quiet"]
    if not silent:
        click.echo(f"drawing a slide with known nuclei in {out}/ ...")
    try:
        slide, truth = write_demo_slide(out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error}); choose another -o") from error
    code = _run([SlideSource(slide, slide.stem, truth)], options, _read_order(options, out))
    if code == 0 and not silent:
        folder = out / slide.stem
        click.echo(f"slide    {slide}\noverlay  {folder / 'overlay.png'}")
        click.echo(f"labels   {folder / 'labels.tif'}\nreport   {folder / 'report.html'}")
    return code


def main() -> None:
    """Run `histoseg-run`."""
    run_command(command)
