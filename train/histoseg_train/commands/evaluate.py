"""`histoseg-train evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from histoseg.errors import DataError
from histoseg.helppage import HelpPage
from histoseg_train.commands.words import format_dice, import_keras
from histoseg_train.dataset import find_held_out, list_items

if TYPE_CHECKING:
    from histoseg.arrays import Pixels
    from histoseg.card import ModelCard
    from histoseg_train.dataset import Dataset
    from histoseg_train.evaluation.scores import Evaluation
    from histoseg_train.evaluation.tiled import TiledModel
    from histoseg_train.images import SampleStore

PATH = click.Path(path_type=Path)
BETWEEN_0_AND_1 = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command(
    cls=HelpPage,
    examples=["histoseg-train evaluate model.keras DATA -o scores"],
    short_help="Score a model on images and masks.",
    context_settings={"show_default": True, "max_content_width": 100},
)
@click.argument("model", type=PATH)
@click.argument("data", type=PATH)
@click.option("-o", "--output", type=PATH, help="Folder to make, with JSON, CSV and a contact sheet.")
@click.option("--root", type=PATH, help="Folder that the paths in a .toml file are relative to.")
@click.option("--mask-threshold", type=click.IntRange(0, 254), help="As for fit.")
@click.option("--all", "all_images", is_flag=True, help="Also score what DATA does not hold out.")
@click.option(
    "--threshold",
    type=BETWEEN_0_AND_1,
    help="Probability from which a pixel is of the second of two classes.  [default: the likelier class]",
)
@click.option("--tile", type=click.IntRange(1), help="Side of the tiles of larger images.  [default: 1024]")
@click.option("--provider", default="auto", help="What runs an .onnx file, as for histoseg-run.")
@click.option("--sheet", "rows", default=8, type=click.IntRange(0, 100), help="Images on the sheet.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON instead.")
def evaluate(model: Path, data: Path, **values: Any) -> None:
    """Score MODEL on the images that DATA holds out, or that training held out, or else on all.

    MODEL was saved by `histoseg-train fit`, or is an .onnx file; DATA is what fit takes. Images of any size
    are cut into tiles as on a slide.
    """
    dataset = list_items(data, root=values["root"], threshold=values["mask_threshold"])
    if not dataset.labelled:
        raise DataError(f"{data}: no image has a mask, expected some to score; add masks")
    import_keras()
    from histoseg_train.evaluation.figures import describe_evaluation
    from histoseg_train.evaluation.files import format_json, make_evaluation_folder, write_evaluation
    from histoseg_train.evaluation.scores import evaluate_store
    from histoseg_train.evaluation.tiled import describe_model, open_model

    output: Path | None = values["output"]
    with (
        make_evaluation_folder(output) if output else nullcontext() as folder,
        open_model(model, tile=values["tile"], provider=values["provider"]) as tiled,
    ):
        store = _open_store(dataset, tiled.card, all_images=values["all_images"])
        with _reporting(len(store)) as report:
            result = evaluate_store(tiled, store, threshold=values["threshold"], on_image=report)
        about = {"model": describe_model(model, tiled), "data": str(data), "all_images": values["all_images"]}
        document = describe_evaluation(result, **about)
        if folder:
            write_evaluation(folder, document, _draw(tiled, store, result, document, values["rows"]))
    if tiled.card.training.get("all_images"):
        click.echo(f"{model}: trained on all images of its set, so on these if they are of it", err=True)
    if values["as_json"]:
        click.echo(format_json(document), nl=False)
    else:
        _print(model, document, tiled.card.class_colors)


def _open_store(dataset: Dataset, card: ModelCard, *, all_images: bool) -> SampleStore:
    """Return the held-out images as the model takes them; all with a mask where none is held out."""
    from histoseg_train.job import Target, open_store

    held_out = () if all_images else find_held_out(dataset, card.training)
    target = Target(
        card.class_names, card.class_colors, card.spacing_um_px, equalization=card.input.equalization
    )
    return open_store(held_out or dataset.labelled, target)


def _draw(
    tiled: TiledModel, store: SampleStore, result: Evaluation, document: dict[str, Any], rows: int
) -> Pixels | None:
    """Return the contact sheet; its images are predicted once more, so that no prediction need be kept."""
    from histoseg_train.evaluation.scores import predict_labels
    from histoseg_train.evaluation.sheet import choose_images, draw_sheet

    if not rows:
        return None
    return draw_sheet(
        store,
        document["images"],
        choose_images([image["dice"] for image in document["images"]], rows),
        predict=partial(predict_labels, tiled, threshold=result.threshold),
        names=tiled.card.class_names,
        colors=tiled.card.class_colors,
    )


@contextmanager
def _reporting(count: int) -> Iterator[Callable[[int], None]]:
    """Show which image is being scored while a person watches."""
    with Console(stderr=True).status("scoring") as status:
        yield lambda done: status.update(f"scored {done} of {count} images")


def _print(model: Path, document: dict[str, Any], colors: tuple[str, ...]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    pooled, dices = document["pooled"], {group["source"]: group["dice"] for group in document["sources"]}
    known = format_dice({source: dice for source, dice in dices.items() if dice is not None})
    console.print(f"{model}: Dice {_word(document['dice'])} of {pooled['images']} images  {known}")
    console.print(_tabulate(pooled["classes"], colors))
    console.print(_describe_pixels(pooled))
    console.print(_describe_spread(pooled))
    if document["best_threshold"] is not None:
        console.print(_describe_threshold(document))


def _tabulate(classes: list[dict[str, Any]], colors: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("all pixels")
    for name in ("Dice", "IoU", "precision", "recall", "true pixels", "predicted"):
        table.add_column(name, justify="right")
    for figures, color in zip(classes, colors, strict=True):
        numbers = [_word(figures[key]) for key in ("dice", "iou", "precision", "recall")]
        pixels = [f"{figures[key]:,}" for key in ("truth_pixels", "predicted_pixels")]
        table.add_row(Text.assemble(("■ ", color), figures["class"]), *numbers, *pixels)
    return table


def _describe_pixels(pooled: dict[str, Any]) -> str:
    words = f"accuracy {_word(pooled['accuracy'])}, mean IoU {_word(pooled['mean_iou'])}"
    words += f", cross-entropy {_word(pooled['loss'])}"
    if pooled["training_loss"] is not None:
        words += f", training loss {_word(pooled['training_loss'])}"
    return words


def _describe_spread(pooled: dict[str, Any]) -> str:
    mean, sd = _word(pooled["image_dice_mean"]), _word(pooled["image_dice_sd"])
    return f"Dice of single images: {mean}, standard deviation {sd}, of {pooled['image_dice_count']} images"


def _describe_threshold(document: dict[str, Any]) -> str:
    rows = {row["threshold"]: row for row in document["thresholds"]}
    best, half = rows[document["best_threshold"]], rows[0.5]
    return (
        f"best threshold {best['threshold']:g}: pooled Dice {_word(best['dice'])}, "
        f"at 0.5 it is {_word(half['dice'])}"
    )


def _word(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
