"""`histoseg-train summary`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from histoseg.helppage import HelpPage
from histoseg_train.architectures import ARCHITECTURES, parse_architecture
from histoseg_train.commands.words import import_keras

if TYPE_CHECKING:
    from histoseg_train.summary import NetworkSummary


@click.command(
    cls=HelpPage,
    examples=["histoseg-train summary unet-w16-d4 --tile 512"],
    short_help="Say what a network is made of and what it costs.",
    context_settings={"show_default": True, "max_content_width": 100},
)
@click.argument("arch")
@click.option("--tile", "tile_px", default=512, type=click.IntRange(1), help="Width and height of the input.")
@click.option("--classes", default=2, type=click.IntRange(2, 255), help="Number of classes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def summary(arch: str, tile_px: int, classes: int, *, as_json: bool) -> None:
    """Print the layers, parameters, receptive field and operations of ARCH.

    ARCH is what fit takes as --arch, such as unet-w16-d4.
    """
    options = parse_architecture(arch)
    if tile_px % options.stride_multiple:
        raise click.UsageError(
            f"--tile is {tile_px}, expected a multiple of {options.stride_multiple}, "
            f"the stride of {options.name}"
        )
    import_keras()
    from histoseg_train.summary import summarize_network

    result = summarize_network(options, tile_px=tile_px, classes=classes)
    if as_json:
        click.echo(json.dumps(asdict(result), indent=2))
        return
    Console(highlight=False).print(_tabulate(result))
    click.echo(_describe(result))


def _tabulate(result: NetworkSummary) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("kind of layer")
    for name in ("layers", "parameters", "GFLOP"):
        table.add_column(name, justify="right")
    for group in result.groups:
        table.add_row(group.kind, str(group.layers), f"{group.parameters:,}", f"{group.flops / 1e9:.2f}")
    rest = result.layers - sum(group.layers for group in result.groups)
    table.add_row("others", str(rest), "0", "")
    table.add_row(
        "all", str(result.layers), f"{result.parameters:,}", f"{result.flops / 1e9:.2f}", style="bold"
    )
    return table


def _describe(result: NetworkSummary) -> str:
    field = result.receptive_field
    base = result.architecture.partition("-")[0]
    beyond = ", and the mean of the whole tile by global pooling" if field.is_global else ""
    return (
        f"\n{result.architecture}: {ARCHITECTURES[base].words}\n"
        f"parameters: {result.trainable_parameters:,} of {result.parameters:,} are trained\n"
        f"receptive field: {field.width_px} x {field.height_px} px{beyond} "
        "(the most input that one output pixel can depend on)\n"
        f"operations: {result.flops / 1e9:.2f} GFLOP per tile of {result.tile_px} x {result.tile_px} px "
        "(two per multiply-add, convolutions alone)"
    )
