"""What trained models say of images that another one is to learn from: knowledge distillation.

Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531. A small network learns from the probabilities
of larger ones more than masks say of every pixel, and something of images that have no mask at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.errors import DataError
from histoseg_train.evaluation.tiled import TiledModel, iter_image, open_model
from histoseg_train.job import TeacherOptions

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Labels, Pixels
    from histoseg_train.images import SampleStore
    from histoseg_train.job import Target


def teach_store(store: SampleStore, options: TeacherOptions, target: Target) -> None:
    """Give every sample of a store the shares of its classes, and a sample without a mask its labels.

    Shares are the mean of the teachers' probabilities, in each of the eight ways to turn and mirror the
    image; where there is a mask, its classes count for the rest. They take a byte a pixel and class.

    Args:
        store: The training images.
        options: Names the teachers, and how much they count.
        target: What they must agree with.

    Raises:
        DataError: A teacher has other classes, another um/px or another equalisation.
        ModelError: A teacher cannot be loaded.
    """
    with ExitStack() as stack:
        teachers = [stack.enter_context(open_model(path)) for path in options.files]
        for path, teacher in zip(options.files, teachers, strict=True):
            _check(path, teacher, target)
        for index, item in enumerate(store.items):
            if not item.weight:
                continue
            sample = store[index]
            said = np.mean([predict_turned(teacher, sample.rgb) for teacher in teachers], axis=0)
            if item.mask is not None:
                said = blend_shares(said, sample.labels, share=options.share)
            store.teach(index, np.round(255 * said).astype(np.uint8))


def predict_turned(model: TiledModel, rgb: Pixels) -> Floats:
    """Return the mean probabilities over the eight ways to turn and mirror an image.

    Args:
        model: What predicts.
        rgb: `uint8` `(h, w, 3)`.

    Returns:
        `float32` `(h, w, classes)`; the same for the turned image, turned.
    """
    found = []
    for step in (1, -1):
        for turns in range(4):
            turned = np.ascontiguousarray(np.rot90(rgb[:, ::step], turns))
            rows = np.concatenate([band.probabilities for band in iter_image(model, turned)])
            found.append(np.rot90(rows, -turns)[:, ::step])
    return np.asarray(np.mean(found, axis=0), np.float32)


def blend_shares(said: Floats, labels: Labels, *, share: float) -> Floats:
    """Return what is to be learnt of each pixel: `share` what teachers say, the rest what the mask does.

    Args:
        said: Probabilities `(h, w, classes)`.
        labels: Class indices `(h, w)`.
        share: From 0 to 1.
    """
    truth = np.eye(said.shape[-1], dtype=np.float32)[labels]
    return share * said + (1 - share) * truth


def describe_teachers(options: TeacherOptions) -> list[dict[str, Any]]:
    """Return the name and the SHA-256 of each teacher's file."""
    return [
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in options.files
    ]


def _check(path: Path, teacher: TiledModel, target: Target) -> None:
    card = teacher.card
    pairs = {
        "classes": (card.class_names, target.class_names),
        "um/px": (card.spacing_um_px, target.spacing_um_px),
        "equalisation": (card.input.equalization, target.equalization),
    }
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            raise DataError(
                f"{path}: the teacher's {name} is {_word(found)}, expected {_word(wanted)}, as of the network"
                " to be trained"
            )


def _word(value: Any) -> str:
    return ", ".join(value) if isinstance(value, Sequence) else str(value or "none")
