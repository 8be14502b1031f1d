"""`histoseg-train patches`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from histoseg.cli import expand_slides
from histoseg.helppage import HelpPage
from histoseg_train.commands.words import parse_classes
from histoseg_train.cutting import CutOptions, check_slides, pair_slides
from histoseg_train.patchset import Tally, split_slides, write_patches

PATH = click.Path(path_type=Path)
POSITIVE = click.FloatRange(0, min_open=True)


@click.command(
    cls=HelpPage,
    examples=["histoseg-train patches 'slides/*.svs' --annotations xml/ -o DATA --classes background,tumour"],
    short_help="Cut slides with annotations into patches.",
    context_settings={"show_default": True, "max_content_width": 100},
)
@click.argument("slides", nargs=-1, required=True, metavar="SLIDES...")
@click.option(
    "--annotations",
    required=True,
    type=PATH,
    help="A folder with one file a slide, named like it, or the file of the only slide: GeoJSON, ImageScope "
    "XML, or a mask of indices, 0 and 255, or class colours.",
)
@click.option("-o", "--output", required=True, type=PATH, help="The folder to make, for fit.")
@click.option(
    "--classes",
    default="background=#ffffff,foreground=#00a000",
    callback=parse_classes,
    help="Names and colours, the background first.",
)
@click.option("--spacing", "spacing_um_px", default=0.5, type=POSITIVE, help="um/px of the patches.")
@click.option("--size", default=512, type=click.IntRange(16), help="Width and height of patches.")
@click.option("--overlap", default=0, type=click.IntRange(0), help="Pixels that neighbours share.")
@click.option(
    "--tissue/--no-tissue", default=True, help="Leave out what holds neither tissue nor annotation."
)
@click.option(
    "--min-tissue", default=0.1, type=click.FloatRange(0, 1), help="Share of a patch that tissue must cover."
)
@click.option(
    "--validation", default=0.2, type=click.FloatRange(0, 0.9), help="Share of slides held out; 0 for none."
)
@click.option(
    "--held-out",
    multiple=True,
    metavar="NAME",
    help="A slide to hold out, without suffix, or a pattern; repeat it.",
)
@click.option("--seed", default=0, type=click.IntRange(0), help="Chooses which slides are held out.")
@click.option(
    "--dilate", "dilate_um", default=0.0, type=click.FloatRange(0), help="um by which classes grow."
)
@click.option("--mpp", type=POSITIVE, help="um/px of the slides, if they do not say; pictures never do.")
@click.option("--allow-coarse", is_flag=True, help="Enlarge slides that are coarser than --spacing.")
@click.option("--licence", default="not stated", help="Of the slides, for the model's card.")
def patches(slides: tuple[str, ...], annotations: Path, output: Path, **values: Any) -> None:
    """Cut SLIDES into patches with masks, a training set for fit.

    SLIDES are files that OpenSlide reads, PNG or JPEG pictures, or patterns of them. Whole slides are held
    out, under OUTPUT/val, never patches. The folder appears once it is whole.
    """
    split = {
        "held_out": values.pop("held_out"),
        "share": values.pop("validation"),
        "seed": values.pop("seed"),
    }
    licence, options = values.pop("licence"), _read_options(values)
    pairs = pair_slides(expand_slides(slides), annotations)
    held_out = split_slides([pair.name for pair in pairs], **split)
    check_slides(pairs, options)
    console = Console(highlight=False, soft_wrap=True)
    report = partial(_report, console, options.class_names)
    with console.status("cutting"):
        tallies = write_patches(pairs, options, output, held_out=held_out, licence=licence, report=report)
    count = sum(tally.patches for tally in tallies)
    click.echo(f"{output}: {count} patches of {len(tallies)} slides, {len(held_out)} of them held out")


def _read_options(values: dict[str, Any]) -> CutOptions:
    if values["overlap"] >= values["size"]:
        raise click.UsageError(
            f"--overlap is {values['overlap']}, expected less than the --size of {values['size']}"
        )
    names, colors = values.pop("classes")
    return CutOptions(class_names=names, class_colors=colors, **values)


def _report(console: Console, names: Sequence[str], tally: Tally) -> None:
    total = max(1, sum(tally.pixels))
    shares = "  ".join(f"{name} {n / total:.1%}" for name, n in zip(names, tally.pixels, strict=True))
    place = "held out" if tally.held_out else "to train on"
    console.print(
        f"{tally.name}: {tally.patches} patches {place}  {shares if tally.patches else 'no tissue'}"
    )
