"""What happens between the steps of `keras.Model.fit`: learning rate, time limit, validation, checkpoint."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import keras

from histoseg_train.evaluate import Evaluation
from histoseg_train.history import Epoch

logger = logging.getLogger(__name__)


class WarmUpCosine(keras.callbacks.Callback):
    """Raise the learning rate linearly, then let it fall to zero along a cosine.

    Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, one cycle. With a time limit the cosine ends
    at whichever of the last step and the limit comes first, so that a run cut short still settles.
    """

    def __init__(self, *, peak: float, steps: int, max_seconds: float | None = None) -> None:
        super().__init__()
        self._peak = peak
        self._steps = steps
        self._warm_up = max(1, min(200, steps // 10))
        self._max_seconds = max_seconds
        self._step = 0
        self._start = time.monotonic()

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Set the rate of this step."""
        warm = min(1.0, (self._step + 1) / self._warm_up)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self._progress())))
        self.model.optimizer.learning_rate = self._peak * warm * cosine
        self._step += 1

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Stop when time is up."""
        if self._max_seconds and time.monotonic() - self._start >= self._max_seconds:
            self.model.stop_training = True

    def _progress(self) -> float:
        done = self._step / self._steps
        if self._max_seconds is None:
            return done
        return max(done, (time.monotonic() - self._start) / self._max_seconds)


class BestCheckpoint(keras.callbacks.Callback):
    """Validate after every epoch, keep the weights of the best one, stop when nothing gets better."""

    def __init__(
        self,
        *,
        validate: Callable[[], Evaluation],
        keep: Callable[[list[Epoch]], None],
        report: Callable[[Epoch], None],
        patience: int,
    ) -> None:
        """Take the three things to do.

        Args:
            validate: Evaluates the model as it is.
            keep: Called with all epochs when the last one is the best so far.
            report: Called with every epoch.
            patience: Epochs without a better one after which training stops.
        """
        super().__init__()
        self.epochs: list[Epoch] = []
        self.best_weights: list[Any] | None = None
        self._validate, self._keep, self._report = validate, keep, report
        self._patience = patience
        self._start = time.monotonic()

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Start the clock."""
        self._start = time.monotonic()

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
            self._keep(self.epochs)
        elif entry.number - self.best.number >= self._patience:
            self.model.stop_training = True
        self._report(entry)

    @property
    def best(self) -> Epoch:
        """Return the best epoch so far."""
        return next(epoch for epoch in reversed(self.epochs) if epoch.is_best)

    def _enter(self, number: int, loss: float, result: Evaluation) -> Epoch:
        # Dice is NaN while no class but the background occurs or is predicted
        is_best = not self.epochs or result.overall > self.best.val_dice or math.isnan(self.best.val_dice)
        return Epoch(
            number=number,
            seconds=time.monotonic() - self._start,
            learning_rate=float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            loss=loss,
            val_dice=result.overall,
            per_source=result.per_source,
            is_best=is_best,
        )
