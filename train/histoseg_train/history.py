"""The course of a training run: `history.csv` and the learning curve."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from histoseg.errors import OutputError


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    number: int
    """From 1."""
    seconds: float
    """Since training began."""
    learning_rate: float
    """At the epoch's end."""
    loss: float
    val_dice: float
    per_source: dict[str, float]
    """Dice of every source's held-out images."""
    is_best: bool


def write_history(path: Path, epochs: Sequence[Epoch]) -> None:
    """Write one row for every epoch; the file is replaced as a whole.

    Raises:
        OutputError: The file cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    sources = list(epochs[0].per_source) if epochs else []
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            dice = [f"val_dice_{source}" for source in sources]
            writer.writerow(["epoch", "seconds", "learning_rate", "loss", "val_dice", *dice])
            writer.writerows(_row(epoch) for epoch in epochs)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot write the history: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def draw_learning_curve(path: Path, epochs: Sequence[Epoch]) -> None:
    """Draw the loss and the Dice of every source over the epochs, as PNG.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    loss_axes, dice_axes = figure.subplots(1, 2)
    numbers = [epoch.number for epoch in epochs]
    loss_axes.plot(numbers, [epoch.loss for epoch in epochs], color="black")
    loss_axes.set(xlabel="epoch", ylabel="training loss")
    for source in epochs[0].per_source if epochs else ():
        values = [epoch.per_source.get(source, math.nan) for epoch in epochs]
        dice_axes.plot(numbers, values, linewidth=0.9, alpha=0.8, label=source)
    dice_axes.plot(numbers, [epoch.val_dice for epoch in epochs], color="black", label="all, weighted")
    _mark_best(dice_axes, epochs)
    dice_axes.set(xlabel="epoch", ylabel="Dice of held-out images", ylim=(0, 1))
    dice_axes.legend(loc="lower right", fontsize="small")
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png", dpi=120)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot write the learning curve: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _row(epoch: Epoch) -> list[object]:
    values = [epoch.loss, epoch.val_dice, *epoch.per_source.values()]
    return [epoch.number, f"{epoch.seconds:.1f}", f"{epoch.learning_rate:.3g}", *(f"{v:.5f}" for v in values)]


def _mark_best(axes: object, epochs: Sequence[Epoch]) -> None:
    best = [epoch for epoch in epochs if epoch.is_best]
    if best:
        axes.plot(best[-1].number, best[-1].val_dice, "o", color="black", label="saved")  # type: ignore[attr-defined]
