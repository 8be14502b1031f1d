"""What trained models say of images that another one is to learn from: knowledge distillation.

Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531. A small network learns from the probabilities
of larger ones more than masks say of every pixel, and something of images that have no mask at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.equalize import Equalization
from histoseg.errors import DataError
from histoseg.session import hash_model
from histoseg_train.evaluation.tiled import TiledModel, iter_image, open_model
from histoseg_train.job import Teacher, TeacherOptions

if TYPE_CHECKING:
    from histoseg.arrays import Floats, Labels, Pixels
    from histoseg_train.images import SampleStore
    from histoseg_train.job import Target


def teach_store(store: SampleStore, options: TeacherOptions, target: Target) -> None:
    """Give every sample of a store that is drawn from soft labels, and one without a mask its labels, too.

    Soft labels are the mean of the teachers' probabilities, in each of the eight ways to turn and mirror the
    image; where there is a mask, its classes count for the rest. They take a byte a pixel and class, of all
    images together.

    Args:
        store: The training images.
        options: Names the teachers, and how much they count.
        target: What they must agree with.

    Raises:
        DataError: A teacher has other classes, another um/px or another equalisation.
        CardError, ModelError: A teacher cannot be loaded.
        ProviderError: Nothing here runs an ONNX file.
    """
    with ExitStack() as stack:
        models = []
        for teacher in options.teachers:
            models.append(stack.enter_context(open_model(teacher.path)))
            _check(teacher.path, models[-1], target)
        for index, item in enumerate(store.items):
            if not item.weight:
                continue
            sample = store[index]
            said = sum(predict_turned(model, sample.rgb) for model in models)
            soft = normalise(np.asarray(said))
            if item.mask is not None:
                soft = blend_labels(soft, sample.labels, share=options.share)
            store.teach(index, np.moveaxis(np.round(255 * soft).astype(np.uint8), -1, 0))


def predict_turned(model: TiledModel, rgb: Pixels) -> Floats:
    """Return the mean probabilities over the eight ways to turn and mirror an image.

    Args:
        model: What predicts.
        rgb: `uint8` `(h, w, 3)`.

    Returns:
        `float32` `(h, w, classes)`; the same for the turned image, turned.
    """
    total = np.zeros((*rgb.shape[:2], len(model.card.class_names)), np.float32)
    for step in (1, -1):
        for turns in range(4):
            turned = np.ascontiguousarray(np.rot90(rgb[:, ::step], turns))
            rows = np.concatenate([band.probabilities for band in iter_image(model, turned)])
            total += np.rot90(rows, -turns)[:, ::step]
    return np.asarray(total / 8, np.float32)


def normalise(said: Floats) -> Floats:
    """Return probabilities `(h, w, classes)` that sum to one, of any: several sigmoids sum to anything.

    Where none is above 0, all classes are as likely.
    """
    above = np.maximum(said, 0)
    total = above.sum(axis=-1, keepdims=True)
    return np.asarray(
        np.where(total > 0, above / np.where(total > 0, total, 1), 1 / said.shape[-1]), np.float32
    )


def blend_labels(said: Floats, labels: Labels, *, share: float) -> Floats:
    """Return what is to be learnt of each pixel: `share` what teachers say, the rest what the mask does.

    Args:
        said: Probabilities `(h, w, classes)`.
        labels: Class indices `(h, w)`.
        share: From 0 to 1.
    """
    truth = np.eye(said.shape[-1], dtype=np.float32)[labels]
    return share * said + (1 - share) * truth


def find_teachers(paths: Sequence[Path], *, share: float = 0.5) -> TeacherOptions:
    """Return teachers by their files, which are read once.

    Raises:
        DataError: A file cannot be read.
    """
    try:
        return TeacherOptions(tuple(Teacher(path, hash_model(path)) for path in paths), share)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot read the teacher: {error.strerror}") from error


def _check(path: Path, teacher: TiledModel, target: Target) -> None:
    card = teacher.card
    pairs = {
        "--classes": (card.class_names, target.class_names),
        "--spacing": (card.spacing_um_px, target.spacing_um_px),
        "--clahe": (card.input.equalization, target.equalization),
    }
    for option, (found, wanted) in pairs.items():
        if found != wanted:
            raise DataError(
                f"{path}: the teacher has {option} {_word(found)}, expected {_word(wanted)}; "
                "give another --teacher, or options like its own"
            )


def _word(value: Any) -> str:
    if isinstance(value, Equalization):
        return f"{value.clip_limit:g} in cells of {value.cell_px} px"
    return ",".join(value) if isinstance(value, Sequence) else str(value or "none")
