"""The course of a training run: `history.csv` and the learning curve."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histoseg.atomic import write_whole
from histoseg.errors import OutputError
from histoseg_train.schedules import Monitor

COLUMNS = ("epoch", "seconds", "learning_rate", "loss", "val_loss", "val_dice", "val_miou")


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
    val_loss: float
    val_dice: float
    val_miou: float
    per_source: dict[str, float]
    """Dice of every source's held-out images."""
    is_best: bool

    def score(self, monitor: Monitor) -> float:
        """Return what decides between epochs; more is better."""
        return {"dice": self.val_dice, "miou": self.val_miou, "loss": -self.val_loss}[monitor]


def write_history(path: Path, epochs: Sequence[Epoch]) -> None:
    """Write one row for every epoch; the file is replaced as a whole.

    Raises:
        OutputError: The file cannot be written.
    """
    sources = list(epochs[0].per_source) if epochs else []
    try:
        with write_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            dice = [f"val_dice_{source}" for source in sources]
            writer.writerow([*COLUMNS, *dice])
            writer.writerows(_row(epoch) for epoch in epochs)
    except OSError as error:
        raise OutputError(f"{path}: cannot write the history: {error}") from error


def draw_learning_curve(path: Path, epochs: Sequence[Epoch]) -> None:
    """Draw the losses, and the Dice of every source, over the epochs, as PNG.

    Raises:
        OutputError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    loss_axes, dice_axes = figure.subplots(1, 2)
    _draw_losses(loss_axes, epochs)
    _draw_scores(dice_axes, epochs)  # empty axes where nothing is held out
    try:
        with write_whole(path) as part:
            figure.savefig(part, format="png", dpi=120)
    except OSError as error:
        raise OutputError(f"{path}: cannot write the learning curve: {error}") from error


def _row(epoch: Epoch) -> list[object]:
    values = [epoch.loss, epoch.val_loss, epoch.val_dice, epoch.val_miou, *epoch.per_source.values()]
    return [epoch.number, f"{epoch.seconds:.1f}", f"{epoch.learning_rate:.3g}", *(f"{v:.5f}" for v in values)]


def _draw_losses(axes: Any, epochs: Sequence[Epoch]) -> None:
    numbers = [epoch.number for epoch in epochs]
    # with a point for each epoch, so that a single one is seen
    axes.plot(numbers, [epoch.loss for epoch in epochs], ".-", color="black", label="training patches")
    held_out = [epoch.val_loss for epoch in epochs]
    if not all(map(math.isnan, held_out)):
        axes.plot(numbers, held_out, ".-", color="tab:orange", label="held-out images")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper right", fontsize="small")


def _draw_scores(axes: Any, epochs: Sequence[Epoch]) -> None:
    numbers = [epoch.number for epoch in epochs]
    sources = epochs[0].per_source if epochs else {}
    for source in sources if len(sources) > 1 else ():
        values = [epoch.per_source.get(source, math.nan) for epoch in epochs]
        axes.plot(numbers, values, ".-", linewidth=0.9, alpha=0.8, label=source)
    name = "Dice, all, weighted" if len(sources) > 1 else "Dice"
    axes.plot(numbers, [epoch.val_dice for epoch in epochs], ".-", color="black", label=name)
    axes.plot(numbers, [epoch.val_miou for epoch in epochs], ".--", color="gray", label="mean IoU")
    best = [epoch for epoch in epochs if epoch.is_best]
    if best:
        axes.plot(best[-1].number, best[-1].val_dice, "o", color="black", label="saved")
    axes.set(xlabel="epoch", ylabel="held-out images", ylim=(0, 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right", fontsize="small")
