"""Figures for TensorBoard by way of tensorboardX, which needs neither TensorFlow nor TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from histoseg.errors import OutputError
from histoseg_train.history import Epoch

FLUSH_SECONDS = 10


@contextmanager
def open_events(folder: Path | None) -> Iterator[Callable[[Epoch], None]]:
    """Begin a new event file in a folder, which is made where it is missing.

    Args:
        folder: Where; nothing is written when `None`.

    Yields:
        What adds the figures of an epoch; they are on the disk some seconds later, or at the end.

    Raises:
        OutputError: The file cannot be written.
    """
    if folder is None:
        yield lambda _: None
        return
    from tensorboardX import SummaryWriter

    try:
        events = SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make the folder: {error.strerror}; choose another") from error
    with events:
        yield partial(_add_epoch, events)


def _add_epoch(events: Any, epoch: Epoch) -> None:
    scalars = {
        "learning_rate": epoch.learning_rate,
        "loss/training": epoch.loss,
        "loss/held_out": epoch.val_loss,
        "held_out/dice": epoch.val_dice,
        "held_out/mean_iou": epoch.val_miou,
        **{f"dice_of_source/{name}": value for name, value in epoch.per_source.items()},
    }
    for name, value in scalars.items():
        if math.isfinite(value):
            events.add_scalar(name, value, epoch.number)
