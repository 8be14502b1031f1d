"""What happens between the steps of `keras.Model.fit`: learning rate, time limit, validation, checkpoint."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras

from histoseg_train.history import Epoch
from histoseg_train.job import FitOptions
from histoseg_train.schedules import Monitor, cosine_share, plateau_share, warm_up
from histoseg_train.validation import Validation

logger = logging.getLogger(__name__)


class LearningRate(keras.callbacks.Callback):
    """Raise the learning rate linearly, then follow the schedule; stop when time is up.

    With a time limit the cosine ends at whichever of the last step and the limit comes first, so that a run
    cut short still settles.
    """

    def __init__(self, options: FitOptions, *, steps: int, epochs: Sequence[Epoch]) -> None:
        """Take what the rate depends on.

        Args:
            options: The schedule and its numbers.
            steps: Batches in an epoch.
            epochs: Those that are done; training adds to them.
        """
        super().__init__()
        self._options, self._epochs = options, epochs
        self._epoch_steps, self._steps = steps, steps * options.epochs
        self._start = _start_clock(epochs)
        self._first_step = 0

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Start the clock, at what a resumed run has spent already."""
        self._start = _start_clock(self._epochs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Count the steps before this epoch."""
        self._first_step = epoch * self._epoch_steps

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Set the rate of this step."""
        step = self._first_step + batch
        share = warm_up(step, self._steps) * self._follow(step)
        self.model.optimizer.learning_rate = self._options.learning_rate * share

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Stop when time is up."""
        if self.is_time_up:
            self.model.stop_training = True

    @property
    def is_time_up(self) -> bool:
        """Tell whether the time limit has passed."""
        return self._spent() >= 1

    def _follow(self, step: int) -> float:
        options = self._options
        if options.schedule == "cosine":
            return cosine_share(max(step / self._steps, self._spent()))
        if options.schedule == "constant":
            return 1.0
        scores = [epoch.score(options.monitor) for epoch in self._epochs]
        return plateau_share(scores, patience=options.plateau_patience, factor=options.plateau_factor)

    def _spent(self) -> float:
        """Return the share of the time limit that has passed."""
        limit = self._options.max_minutes
        return 0.0 if limit is None else (time.monotonic() - self._start) / (60 * limit)


class BestCheckpoint(keras.callbacks.Callback):
    """Validate after every epoch, keep the weights of the best one, stop when nothing gets better."""

    def __init__(
        self,
        *,
        validate: Callable[[], Validation],
        keep: Callable[[], None],
        report: Callable[[Epoch], None],
        patience: int,
        monitor: Monitor = "dice",
    ) -> None:
        """Take the three things to do.

        Args:
            validate: Evaluates the model as it is.
            keep: Called when the last of `epochs` is the best so far.
            report: Called with every epoch.
            patience: Epochs without a better one after which training stops.
            monitor: What makes an epoch better.
        """
        super().__init__()
        self.epochs: list[Epoch] = []
        self.best_weights: list[Any] = []
        self._validate, self._keep, self._report = validate, keep, report
        self._patience, self._monitor = patience, monitor
        self._start = time.monotonic()

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Start the clock, at what a resumed run has spent already."""
        self._start = _start_clock(self.epochs)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Validate, and keep the weights when they are the best so far."""
        loss = float((logs or {}).get("loss", math.nan))
        if not math.isfinite(loss):
            logger.warning("the loss became %s in epoch %d: training stops", loss, epoch + 1)
            self.model.stop_training = True
            return
        entry = self._enter(epoch + 1, loss, self._validate())
        self.epochs.append(entry)
        if entry.is_best:
            self.best_weights = self.model.get_weights()
            self._keep()
        if self.is_exhausted:
            self.model.stop_training = True
        self._report(entry)

    @property
    def best(self) -> Epoch:
        """Return the best epoch so far."""
        return find_best(self.epochs)

    @property
    def is_exhausted(self) -> bool:
        """Tell whether nothing got better for so long that training stops."""
        return bool(self.epochs) and self.epochs[-1].number - self.best.number >= self._patience

    def _enter(self, number: int, loss: float, result: Validation) -> Epoch:
        entry = Epoch(
            number=number,
            seconds=time.monotonic() - self._start,
            learning_rate=float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            loss=loss,
            val_loss=result.loss,
            val_dice=result.dice,
            val_miou=result.miou,
            per_source=result.dice_per_source,
            is_best=False,
        )
        score = entry.score(self._monitor)
        before = self.best.score(self._monitor) if self.epochs else math.nan
        # Dice is NaN while no class but the background occurs or is predicted, and where nothing is held out:
        # the last epoch is the best one then
        return replace(entry, is_best=not self.epochs or score > before or math.isnan(before))


def find_best(epochs: Sequence[Epoch]) -> Epoch:
    """Return the best of some epochs, the first of which is always the best so far."""
    return next(epoch for epoch in reversed(epochs) if epoch.is_best)


def _start_clock(epochs: Sequence[Epoch]) -> float:
    """Return the time at which a run began, had it not been interrupted after these epochs."""
    return time.monotonic() - (epochs[-1].seconds if epochs else 0.0)
