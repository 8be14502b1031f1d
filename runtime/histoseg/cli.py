"""`histoseg-run`: segment whole-slide images."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

import histoseg
from histoseg.card import Blend
from histoseg.command import run_command
from histoseg.errors import HistosegError, OptionError, OutputError, SlideError

if TYPE_CHECKING:
    from histoseg.options import RunOptions
    from histoseg.session import Session

EXAMPLES = """\b
Examples:
  histoseg-run --demo
  histoseg-run slide.svs -o results
  histoseg-run 'slides/*.ndpi' -m model.onnx --provider cuda
  histoseg-run slide.svs --truth mask.png"""


def _check_provider(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from histoseg.providers import PROVIDERS, known_provider

    if not known_provider(value):
        names = ", ".join(["auto", *PROVIDERS])
        raise click.BadParameter(
            f"'{value}' is no provider, expected {names} or a name that onnxruntime knows"
        )
    return value


def _check_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    from histoseg.memory import parse_bytes

    try:
        return parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command(name="histoseg-run", epilog=EXAMPLES, context_settings={"max_content_width": 100})
@click.argument("slides", nargs=-1, metavar="SLIDE...")
@click.option(
    "-m", "--model", type=click.Path(path_type=Path), help="ONNX model.  [default: nuclei, built in]"
)
@click.option("--card", type=click.Path(path_type=Path), help="Model card (JSON) for a model without one.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder for results.  [default: histoseg-out]"
)
@click.option("--provider", default="auto", show_default=True, callback=_check_provider,
              help="auto, cpu, cuda, tensorrt, openvino: used or refused, never replaced.")  # fmt: skip
@click.option(
    "--truth", type=click.Path(path_type=Path), help="Mask, GeoJSON or ImageScope XML: reports Dice."
)
@click.option(
    "--roi", type=click.Path(path_type=Path), help="Mask, GeoJSON or ImageScope XML: runs there alone."
)
@click.option("--mpp", type=click.FloatRange(min=0, min_open=True), help="um/px of the slide, over its own.")
@click.option("--allow-coarse", is_flag=True, help="Enlarge a slide that is too coarse for the model.")
@click.option("--blend", type=click.Choice(get_args(Blend)), help="How tiles join.  [default: the model's]")
@click.option(
    "--overlap", type=click.IntRange(min=0), help="Pixels that tiles share.  [default: the model's]"
)
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Probability of the second class (two-class models).")  # fmt: skip
@click.option("--no-tissue", is_flag=True, help="Run every tile, tissue or not.")
@click.option("--batch", type=click.IntRange(1, 1024), help="Tiles at a time.  [default: by size]")
@click.option(
    "--threads", type=click.IntRange(1, 256), help="CPU threads for the model.  [default: all; few on a GPU]"
)
@click.option("--max-memory", metavar="SIZE", callback=_check_size, help="Stay below, such as 1GiB.")
@click.option("--objects/--no-objects", default=True, help="Write objects.geojson.gz, for QuPath.")
@click.option("--min-area-um2", type=click.FloatRange(min=0), default=0.0, help="Leave smaller ones out.")
@click.option("--simplify/--no-simplify", default=True, help="Cut the corners of their steps.")
@click.option("--demo", is_flag=True, help="Draw a slide with known nuclei, segment it, show the Dice.")
@click.version_option(histoseg.__version__)
def command(**options: Any) -> int:
    """Segment whole-slide images with an ONNX model. Research use only.

    Writes OUT/<slide>/ with labels.tif, objects.geojson.gz, overlay.png, report.html and report.json.
    """
    if options["demo"]:
        return _run_demo(options)
    slides = expand_slides(options["slides"])
    if options["truth"] and len(slides) > 1:
        raise click.UsageError(f"--truth is the truth of one slide, but there are {len(slides)}")
    if options["roi"] and len(slides) > 1:
        raise click.UsageError(f"--roi is a region of one slide, but there are {len(slides)}")
    with _open_model(options) as session:
        return _run_all(slides, session, options["out"] or Path("histoseg-out"), options)


def expand_slides(patterns: tuple[str, ...]) -> list[Path]:
    """Return the slides that paths and globs name, in order and once each.

    Raises:
        click.UsageError: There is none, or two would write to the same folder.
        SlideError: A glob matches nothing.
    """
    if not patterns:
        raise click.UsageError("no slide given, expected at least one SLIDE (or --demo)")
    found: dict[Path, None] = {}
    for pattern in patterns:
        if Path(pattern).exists() or not glob.has_magic(pattern):
            found[Path(pattern)] = None
            continue
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise SlideError(f"no file matches '{pattern}', expected at least one slide")
        found.update((Path(match), None) for match in matches)
    stems: dict[str, Path] = {}
    for path in found:
        if path.stem in stems:
            raise click.UsageError(
                f"{stems[path.stem]} and {path} would both write to the folder '{path.stem}'; "
                "run them with different -o"
            )
        stems[path.stem] = path
    return list(found)


def _open_model(options: dict[str, Any]) -> Session:
    from histoseg.models import default_model
    from histoseg.session import open_session

    return open_session(
        options["model"] or default_model(),
        provider=options["provider"],
        card=options["card"],
        threads=options["threads"],
    )


def _read_options(options: dict[str, Any], session: Session) -> RunOptions:
    from histoseg.options import RunOptions, check_options

    chosen = RunOptions(
        mpp=options["mpp"],
        allow_coarse=options["allow_coarse"],
        blend=options["blend"],
        overlap_px=options["overlap"],
        threshold=options["threshold"],
        tissue=not options["no_tissue"],
        batch_size=options["batch"],
        max_memory=options["max_memory"],
        objects=options["objects"],
        min_area_um2=options["min_area_um2"],
        simplify=options["simplify"],
    )
    try:
        check_options(chosen, session)
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    return chosen


def _run_all(slides: list[Path], session: Session, out: Path, options: dict[str, Any]) -> int:
    from histoseg.job import segment_slide
    from histoseg.outputs.report import CohortEntry, read_thumbnail, write_index

    chosen = _read_options(options, session)
    entries = []
    for path in slides:
        try:
            with _progress(path.name) as on_tiles:
                report = segment_slide(
                    path,
                    session,
                    out,
                    chosen,
                    truth=options["truth"],
                    roi=options["roi"],
                    on_tiles=on_tiles,
                )
        except (HistosegError, OSError, MemoryError) as error:  # one bad slide never stops the others
            entries.append(CohortEntry(path.name, path.stem, failure=str(error)))
            click.echo(f"histoseg-run: error: {error}", err=True)
        else:
            thumbnail = read_thumbnail(out / path.stem / "overlay.png")
            entries.append(CohortEntry(path.name, path.stem, report, thumbnail=thumbnail))
            click.echo(summarize(report, out / path.stem))
    if len(entries) > 1 and out.is_dir():
        write_index(out / "index.html", entries)
        click.echo(f"{out / 'index.html'}: {len(entries)} slides")
    return 1 if any(entry.failure for entry in entries) else 0


def _run_demo(options: dict[str, Any]) -> int:
    from histoseg.demo import write_demo_slide

    if options["slides"] or options["truth"] or options["roi"]:
        raise click.UsageError(
            "--demo draws its own slide and truth, but a SLIDE, --truth or --roi was given"
        )
    out = options["out"] or Path("histoseg-demo")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made a folder ({error.strerror}); choose another -o") from error
    click.echo(f"drawing a slide with known nuclei in {out}/ ...")
    try:
        slide, truth = write_demo_slide(out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error}); choose another -o") from error
    with _open_model(options) as session:
        code = _run_all([slide], session, out, {**options, "truth": truth})
    if code == 0:
        click.echo(f"slide    {slide}\noverlay  {out / slide.stem / 'overlay.png'}")
        click.echo(f"labels   {out / slide.stem / 'labels.tif'}\nreport   {out / slide.stem / 'report.html'}")
    return code


def summarize(report: dict[str, Any], folder: Path) -> str:
    """Return the one line that a person reads about a finished slide."""
    background = report["model"]["background"]
    total = sum(entry["pixels"] for entry in report["classes"])
    whole = "region" if report["options"]["roi"] else "slide"
    parts = [
        f"{entry['name']} {100 * entry['pixels'] / total:.2f} % of the {whole} ({entry['area_mm2']:.3f} mm2)"
        for entry in report["classes"]
        if entry["name"] != background
    ]
    if "score" in report:
        dices = [(e["name"], e["dice"]) for e in report["score"]["classes"] if e["name"] != background]
        parts += [
            f"Dice {name} " + ("not present" if dice is None else f"{dice:.3f}") for name, dice in dices
        ]
    tiles, seconds = report["tiles"], report["seconds"]["total"]
    if note := (report["tissue"] or {}).get("note"):
        parts.append(note)
    elif not tiles["run"]:
        parts.append("no tissue found (--no-tissue runs every tile)")
    if note := (report["objects"] or {}).get("note"):
        parts.append(note)
    parts.append(f"{tiles['run']} of {tiles['total']} tiles on {report['provider']}, {seconds:.1f} s")
    return f"{Path(report['slide']['path']).name}: {', '.join(parts)} -> {folder}"


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tiles"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def main() -> None:
    """Run `histoseg-run`."""
    run_command(command)
