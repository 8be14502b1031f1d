"""Training: a dataset in, the model of the best epoch out, with its history beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from histoseg.errors import DataError
from histoseg_train.architectures import build_architecture
from histoseg_train.callbacks import BestCheckpoint, WarmUpCosine
from histoseg_train.dataset import Dataset
from histoseg_train.evaluate import Evaluation, evaluate_samples
from histoseg_train.history import Epoch, draw_learning_curve, write_history
from histoseg_train.job import Job
from histoseg_train.losses import cross_entropy_dice_loss
from histoseg_train.metadata import KerasMetadata
from histoseg_train.modelfile import save_model
from histoseg_train.patches import PatchBatches

# a card names this many held-out images of a source and counts the rest
MAX_NAMES = 40


def fit_model(job: Job, output: Path, *, report: Callable[[Epoch], None] = lambda _: None) -> Epoch:
    """Train a network and save the weights of its best epoch.

    The model file is replaced whenever an epoch is the best so far, so that a run that is interrupted leaves
    its best model. `<stem>.history.csv` and `<stem>.learning_curve.png` are written beside it.

    Args:
        job: What to train, on what, and how.
        output: A `.keras` or `.h5` file.
        report: Called after every epoch.

    Returns:
        The best epoch.

    Raises:
        DataError: An image or mask does not fit, or the loss is no number.
        OutputError: A file cannot be written.
    """
    keras.utils.set_random_seed(job.fit.seed)
    classes = len(job.target.class_names)
    model = build_architecture((None, None, 3), classes, options=job.network, weights=job.weights)
    checkpoint = BestCheckpoint(
        validate=lambda: _validate(model, job),
        keep=lambda epochs: save_model(model, output, describe(job, epochs)),
        report=_write_then(report, lambda: write_history(_beside(output, "history.csv"), checkpoint.epochs)),
        patience=job.fit.patience,
    )
    _train(model, job, checkpoint)
    if checkpoint.best_weights is None:
        raise DataError("the loss became infinite in the first epoch; lower --learning-rate")
    checkpoint.model.set_weights(checkpoint.best_weights)
    save_model(model, output, describe(job, checkpoint.epochs))
    draw_learning_curve(_beside(output, "learning_curve.png"), checkpoint.epochs)
    return checkpoint.best


def describe(job: Job, epochs: list[Epoch]) -> KerasMetadata:
    """Return the metadata of the best of `epochs`."""
    best = next(epoch for epoch in reversed(epochs) if epoch.is_best)
    dice = Evaluation(best.val_dice, best.per_source).to_json()
    training = {
        "data": _describe_sources(job.dataset),
        "held_out": _describe_held_out(job.dataset),
        "dice": dice,
        "epochs": len(epochs),
        "best_epoch": best.number,
        "seconds": round(epochs[-1].seconds),
        "seed": job.fit.seed,
        "stride_multiple": job.network.stride_multiple,
        "command": job.command,
    }
    return KerasMetadata(
        architecture=job.network.name,
        class_names=job.target.class_names,
        class_colors=job.target.class_colors,
        spacing_um_px=job.target.spacing_um_px,
        normalization=job.target.normalization,
        patch_size_pixels=(job.patches.size, job.patches.size),
        training=training,
    )


def _train(model: Any, job: Job, checkpoint: BestCheckpoint) -> None:
    # a second model around the same layers is compiled, so that the saved one carries no optimizer or loss
    trainer = keras.Model(model.inputs, model.outputs)
    optimizer = keras.optimizers.AdamW(job.fit.learning_rate, weight_decay=job.fit.weight_decay, clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    trainer.compile(optimizer=optimizer, loss=cross_entropy_dice_loss, jit_compile=False)
    rate = WarmUpCosine(
        peak=job.fit.learning_rate,
        steps=job.fit.epochs * job.patches.steps,
        max_seconds=None if job.fit.max_minutes is None else 60 * job.fit.max_minutes,
    )
    batches = PatchBatches(job.training, job.patches, job.target.normalization, seed=job.fit.seed)
    trainer.fit(batches, epochs=job.fit.epochs, callbacks=[rate, checkpoint], verbose=0, shuffle=False)


def _validate(model: Any, job: Job) -> Evaluation:
    return evaluate_samples(
        model,
        job.held_out,
        classes=len(job.target.class_names),
        normalization=job.target.normalization,
        stride_multiple=job.network.stride_multiple,
    )


def _write_then(report: Callable[[Epoch], None], write: Callable[[], None]) -> Callable[[Epoch], None]:
    def write_and_report(epoch: Epoch) -> None:
        write()
        report(epoch)

    return write_and_report


def _beside(output: Path, name: str) -> Path:
    return output.with_name(f"{output.stem}.{name}")


def _describe_sources(dataset: Dataset) -> list[dict[str, Any]]:
    trained = Counter(item.source for item in dataset.training)
    held_out = Counter(item.source for item in dataset.held_out)
    return [
        {**words, "images_trained": trained[words["name"]], "images_held_out": held_out[words["name"]]}
        for words in dataset.sources
    ]


def _describe_held_out(dataset: Dataset) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for item in dataset.held_out:
        names.setdefault(item.source, []).append(item.stem)
    return {
        source: stems
        if len(stems) <= MAX_NAMES
        else [*stems[:MAX_NAMES], f"and {len(stems) - MAX_NAMES} more"]
        for source, stems in names.items()
    }
