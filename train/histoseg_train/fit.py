"""Training: a dataset in, the model of the best epoch out, with its history beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from histoseg.arrays import Labels, Pixels
from histoseg.errors import DataError
from histoseg_train.callbacks import BestCheckpoint, LearningRate, find_best
from histoseg_train.dataset import Dataset, name_held_out
from histoseg_train.history import Epoch, draw_learning_curve, write_history
from histoseg_train.job import Job
from histoseg_train.metadata import KerasMetadata
from histoseg_train.modelfile import save_model
from histoseg_train.network import Network, build_network
from histoseg_train.patches import PatchBatches
from histoseg_train.preview import cut_tiles, write_preview
from histoseg_train.resume import (
    RunState,
    assign_variables,
    describe_run,
    find_state,
    read_variables,
    write_state,
)
from histoseg_train.teachers import teach_store
from histoseg_train.tensorboard import open_events
from histoseg_train.validation import Validation, predict_probabilities, validate_network


@dataclass(frozen=True)
class Listener:
    """Who is told what happens."""

    report: Callable[[Epoch], None] = lambda _: None
    """Called after every epoch, when all its files are written."""
    tell: Callable[[str], None] = lambda _: None
    """Called with one line about what comes first: a run that was left unfinished, teachers."""


def fit_model(
    job: Job,
    output: Path,
    *,
    listener: Listener | None = None,
    restart: bool = False,
    tensorboard: Path | None = None,
) -> Epoch:
    """Train a network and save the weights of its best epoch.

    The model file is replaced whenever an epoch is the best so far, so that a run that is interrupted leaves
    its best model. History, learning curve and a preview of held-out tiles are written beside it, and while
    training lasts its state, with which the same job goes on where it was interrupted.

    Args:
        job: What to train, on what, and how.
        output: A `.keras` or `.h5` file.
        listener: Is told of epochs.
        restart: Begin afresh, whatever was left.
        tensorboard: Folder to write figures for TensorBoard into.

    Returns:
        The best epoch.

    Raises:
        DataError: An image, mask or teacher does not fit, or the loss is no number.
        CardError, ModelError: A teacher cannot be loaded, or the weights of an encoder.
        OutputError: A file cannot be written.
    """
    listener = listener or Listener()
    keras.utils.set_random_seed(job.fit.seed)
    network, run, state_path = build_network(job), describe_run(job), _beside(output, "state")
    state = None if restart else find_state(state_path, run, tell=listener.tell)
    draw = _prepare_pictures(network, job, output)

    def write_files(epoch: Epoch) -> None:
        draw(checkpoint.epochs)
        add_figures(epoch)
        write_state(state_path, _read_state(network, checkpoint), run)
        listener.report(epoch)

    checkpoint = BestCheckpoint(
        validate=lambda: _validate(network, job),
        keep=lambda: save_model(network.model, output, describe(job, checkpoint.epochs)),
        report=write_files,
        patience=job.fit.patience,
        monitor=job.fit.monitor,
    )
    if state is not None:
        _restore(network, checkpoint, state)
    with open_events(tensorboard) as add_figures:
        _train(network, job, checkpoint, tell=listener.tell)
    _finish(network, job, output, checkpoint)
    state_path.unlink(missing_ok=True)
    return checkpoint.best


def describe(job: Job, epochs: list[Epoch]) -> KerasMetadata:
    """Return the metadata of the best of `epochs`."""
    best = find_best(epochs)
    training = {
        "data": _describe_sources(job.dataset),
        "held_out": name_held_out(job.dataset),
        "split": asdict(job.dataset.split) if job.dataset.split else None,
        "all_images": not job.dataset.held_out,
        "dice": _describe_dice(best),
        "epochs": len(epochs),
        "best_epoch": best.number,
        "seconds": round(epochs[-1].seconds),
        "loss": dict(job.loss.terms),
        "class_weights": list(job.loss.class_weights),
        "monitor": job.fit.monitor,
        "seed": job.fit.seed,
        "smooth_um": job.smooth_um,
        "stride_multiple": job.network.stride_multiple,
        "command": job.command,
    }
    if job.teachers.teachers:
        training["teachers"] = [
            {"file": teacher.path.name, "sha256": teacher.sha256} for teacher in job.teachers.teachers
        ]
        training["teacher_share"] = job.teachers.share
    return KerasMetadata(
        architecture=job.network.name,
        class_names=job.target.class_names,
        class_colors=job.target.class_colors,
        spacing_um_px=job.target.spacing_um_px,
        normalization=job.target.normalization,
        equalization=job.target.equalization,
        patch_size_pixels=(job.patches.size, job.patches.size),
        training=training,
    )


def _read_state(network: Network, checkpoint: BestCheckpoint) -> RunState:
    values = read_variables(network.variables)
    return RunState(tuple(checkpoint.epochs), values, tuple(checkpoint.best_weights))


def _restore(network: Network, checkpoint: BestCheckpoint, state: RunState) -> None:
    assign_variables(network.variables, state.variables)
    checkpoint.epochs.extend(state.epochs)
    checkpoint.best_weights = list(state.best_weights)


def _train(network: Network, job: Job, checkpoint: BestCheckpoint, *, tell: Callable[[str], None]) -> None:
    done = len(checkpoint.epochs)
    rate = LearningRate(job.fit, steps=job.patches.steps, epochs=checkpoint.epochs)
    if checkpoint.is_exhausted or rate.is_time_up or done == job.fit.epochs:
        return
    if job.teachers.teachers:
        tell(_describe_teaching(job))
        teach_store(job.training, job.teachers, job.target)
    batches = PatchBatches(
        job.training, job.patches, job.target.normalization, seed=job.fit.seed, first_epoch=done
    )
    network.trainer.fit(
        batches,
        initial_epoch=done,
        epochs=job.fit.epochs,
        callbacks=[rate, checkpoint],
        verbose=0,
        shuffle=False,
    )


def _finish(network: Network, job: Job, output: Path, checkpoint: BestCheckpoint) -> None:
    if not checkpoint.epochs:
        raise DataError("the loss became infinite in the first epoch; lower --learning-rate")
    network.model.set_weights(checkpoint.best_weights)
    save_model(network.model, output, describe(job, checkpoint.epochs))
    draw_learning_curve(_beside(output, "learning_curve.png"), checkpoint.epochs)


def _validate(network: Network, job: Job) -> Validation:
    network.publish()
    return validate_network(network.model, job)


def _prepare_pictures(network: Network, job: Job, output: Path) -> Callable[[list[Epoch]], None]:
    """Return what writes the history and the picture of the last epoch."""
    tiles = cut_tiles(job)

    def predict(rgb: Pixels) -> Labels:
        return np.argmax(predict_probabilities(network.model, rgb, job), axis=-1).astype(np.uint8)

    def draw(epochs: list[Epoch]) -> None:
        write_history(_beside(output, "history.csv"), epochs)
        write_preview(_beside(output, "preview.png"), tiles, predict, job=job, epoch=epochs[-1].number)

    return draw


def _describe_dice(best: Epoch) -> dict[str, Any]:
    per_source = {name: round(value, 4) for name, value in best.per_source.items() if np.isfinite(value)}
    return {
        "overall": round(best.val_dice, 4) if np.isfinite(best.val_dice) else None,
        "per_source": per_source,
    }


def _beside(output: Path, name: str) -> Path:
    # a .keras and an .h5 file of one stem lie beside each other
    stem = output.stem if output.suffix == ".keras" else output.name
    return output.with_name(f"{stem}.{name}")


def _describe_teaching(job: Job) -> str:
    count = len(job.teachers.teachers)
    words = "1 teacher looks" if count == 1 else f"{count} teachers look"
    return f"{words} at {len(job.dataset.drawn)} images"


def _describe_sources(dataset: Dataset) -> list[dict[str, Any]]:
    trained = Counter(item.source for item in dataset.drawn)
    held_out = Counter(item.source for item in dataset.held_out)
    return [
        {**words, "images_trained": trained[words["name"]], "images_held_out": held_out[words["name"]]}
        for words in dataset.sources
    ]
