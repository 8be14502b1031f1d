"""`histoseg-train show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from histoseg.atomic import write_whole
from histoseg.errors import OutputError
from histoseg.helppage import HelpPage
from histoseg_train.commands.described import take_description
from histoseg_train.commands.options import (
    CLAHE,
    DATA,
    PATCHES,
    add_options,
    pick,
    read_augment,
    read_equalization,
)
from histoseg_train.dataset import list_items
from histoseg_train.job import PatchOptions, Target, open_store
from histoseg_train.statistics import ClassCount

PATH = click.Path(path_type=Path)


SECTIONS = {
    "Data": ("output", "root", "classes", "spacing_um_px", "images", "draws", "seed"),
    "Changes of patches": ("size", "scale", "elastic", "restain", "stain", "color"),
}


@click.command(
    cls=HelpPage,
    sections=SECTIONS,
    examples=["histoseg-train show DATA -o sheet.png --spacing 0.5 --classes background,nucleus"],
    short_help="Look at a training set as a network sees it.",
    context_settings={"show_default": True, "max_content_width": 100},
)
@click.argument("data", type=PATH, is_eager=True, callback=take_description)
@click.option("-o", "--output", required=True, type=PATH, help="The contact sheet, a PNG file.")
@click.option("--images", default=6, type=click.IntRange(1, 100), help="Images on the sheet.")
@click.option("--draws", default=5, type=click.IntRange(1, 20), help="Random patches of each.")
@click.option("--seed", default=0, type=click.IntRange(0), help="Chooses images and patches.")
@add_options(DATA, CLAHE, PATCHES)
def show(data: Path, output: Path, **values: Any) -> None:
    """Draw a contact sheet of DATA and count its classes.

    DATA is what fit takes. Each row shows an image, and patches of it as training cuts and changes them.
    """
    from histoseg_train.contactsheet import choose_items, draw_samples, draw_sheet
    from histoseg_train.images import encode_png
    from histoseg_train.statistics import count_classes, measure_shares

    (names, colors), seed = values["classes"], values["seed"]
    items = list_items(
        data, root=values["root"], threshold=values["mask_threshold"], dilate_um=values["dilate_um"]
    ).items
    store = open_store(
        items, Target(names, colors, values["spacing_um_px"], equalization=read_equalization(values))
    )
    counts = count_classes(store, classes=len(names))
    # networks see what is not held out; of sets that are for evaluation alone, all is shown
    drawn_from = [index for index, item in enumerate(items) if item.weight]
    seen = [index for index in drawn_from if not items[index].held_out] or drawn_from
    chosen = choose_items(items, seen, values["images"], seed=seed)
    patches = replace(pick(PatchOptions, values), augment=read_augment(values))
    drawn = draw_samples(store, chosen, patches, draws=values["draws"], seed=seed)
    _write(output, encode_png(draw_sheet(store, chosen, drawn, colors)))
    console = Console(highlight=False)
    console.print(_tabulate(counts, names, colors))
    told = [patches for index, patches in zip(chosen, drawn, strict=True) if items[index].mask is not None]
    shares = measure_shares(chain.from_iterable(told), classes=len(names))
    words = ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True))
    console.print(
        f"{output}: {len(chosen)} images, patches drawn of each: {values['draws']}; they hold {words}",
        soft_wrap=True,
    )


def _tabulate(counts: Sequence[Sequence[ClassCount]], names: Sequence[str], colors: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("source")
    table.add_column("class")
    for name in ("images", "with it", "pixels", "share"):
        table.add_column(name, justify="right")
    for source in counts:
        for name, color, count in zip(names, colors, source, strict=True):
            where = f"{count.source} (held out)" if count.held_out else count.source
            label = Text.assemble(("■ ", color), name)
            numbers = (
                str(count.images),
                str(count.images_with_it),
                f"{count.pixels:,}",
                f"{count.share:.2%}",
            )
            table.add_row(where if name == names[0] else "", label, *numbers)
    return table


def _write(output: Path, data: bytes) -> None:
    try:
        with write_whole(output) as part:
            part.write_bytes(data)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror}); choose another -o") from error
