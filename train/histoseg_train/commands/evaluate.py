"""`histoseg-train evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from histoseg_train.commands.words import format_dice, import_keras
from histoseg_train.dataset import list_items
from histoseg_train.job import Target, open_store
from histoseg_train.metadata import require_metadata

PATH = click.Path(path_type=Path)


@click.command(short_help="Score a model on images and masks.")
@click.argument("model", type=PATH)
@click.argument("data", type=PATH)
@click.option("--root", type=PATH, help="Folder that the paths in a .toml file are relative to.")
@click.option("--mask-threshold", type=click.IntRange(0, 254), help="As for fit.")
def evaluate(model: Path, data: Path, root: Path | None, mask_threshold: int | None) -> None:
    """Print the Dice of MODEL on all images that DATA holds out, or on all when it holds out none.

    MODEL was saved by `histoseg-train fit`; DATA is what fit takes.
    """
    metadata = require_metadata(model)
    items = list_items(data, root=root, threshold=mask_threshold).items
    items = tuple(item for item in items if item.held_out) or items
    import_keras()
    from histoseg_train.evaluate import evaluate_samples
    from histoseg_train.modelfile import load_model

    network = load_model(model)
    target = Target(
        metadata.class_names, metadata.class_colors, metadata.spacing_um_px, metadata.normalization
    )
    result = evaluate_samples(
        network,
        open_store(items, target),
        classes=len(metadata.class_names),
        normalization=metadata.normalization,
        stride_multiple=int(metadata.training.get("stride_multiple", 32)),
    )
    click.echo(f"{model}: Dice {result.overall:.4f} of {len(items)} images  {format_dice(result.per_source)}")
