"""What a model comes to on each image, in counts that can be added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg.blend import label_band
from histoseg.errors import OptionError
from histoseg.score import Confusion, ThresholdSweep
from histoseg_train.evaluation.tiled import TiledModel, iter_image
from histoseg_train.losses import LOSSES, LossOptions, build_loss

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Floats, Labels, Pixels
    from histoseg.card import ModelCard
    from histoseg_train.dataset import Item
    from histoseg_train.images import Sample, SampleStore

    Loss = Callable[[Labels, Floats], float]

# Smaller probabilities count as this one, as they do in Keras: a single pixel must not make a loss infinite.
LEAST_PROBABILITY = 1e-7
# The training loss needs the probabilities of a whole image at once, several times over.
LARGEST_LOSS_PX = 1 << 26


@dataclass(frozen=True)
class ImageScore:
    """What one image adds to the figures."""

    source: str
    name: str
    weight: float
    """Of the source, when the sources' Dice are averaged."""
    size: tuple[int, int]
    """Width and height, in model pixels."""
    counts: NDArray[np.int64]
    """`(classes, classes)` pixels: rows truth, columns prediction."""
    entropy: float
    """Cross-entropy summed over the pixels."""
    training_loss: float | None
    """What training made small, of this image; `None` where the model does not say what that was."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of some images."""

    card: ModelCard
    threshold: float | None
    """Probability of the second of two classes from which a pixel belongs to it; `None`: the likelier one."""
    scores: tuple[ImageScore, ...]
    thresholds: tuple[dict[str, float | None], ...]
    """Of two classes: Dice, precision and recall of the second one by threshold, over all pixels."""


def evaluate_store(
    model: TiledModel,
    store: SampleStore,
    *,
    threshold: float | None = None,
    on_image: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Score a model on images.

    Args:
        model: What predicts.
        store: Images and masks at the model's um/px.
        threshold: Of two-class models, over what the card says.
        on_image: Called with the number of images done, before each and at the end.

    Raises:
        DataError: An image or mask cannot be read, or does not fit.
        ModelError: The model fails.
        OptionError: A threshold is given, and the model has more than two classes.
    """
    card = model.card
    threshold = choose_threshold(card, threshold)
    sweep = ThresholdSweep() if len(card.class_names) == 2 else None
    loss, scores = read_training_loss(card.training), []
    for index, item in enumerate(store.items):
        on_image(index)
        scores.append(score_image(model, item, store[index], threshold=threshold, loss=loss, sweep=sweep))
    on_image(len(store))
    return Evaluation(card, threshold, tuple(scores), tuple(sweep.report()) if sweep else ())


def score_image(
    model: TiledModel,
    item: Item,
    sample: Sample,
    *,
    threshold: float | None = None,
    loss: Loss | None = None,
    sweep: ThresholdSweep | None = None,
) -> ImageScore:
    """Run one image through a model and count, band by band.

    Args:
        model: What predicts.
        item: Names the image.
        sample: Its pixels and true classes.
        threshold: Of two-class models; see `Evaluation`.
        loss: The training loss.
        sweep: Gets the probabilities of the second of two classes.
    """
    card, entropy = model.card, 0.0
    confusion, kept = Confusion(len(card.class_names)), []
    for band in iter_image(model, sample.rgb):
        truth = sample.labels[band.m_y : band.m_y + len(band.probabilities)]
        confusion.add(truth, label_band(band, background=card.background_index, threshold=threshold))
        entropy += sum_entropy(truth, band.probabilities)
        if sweep is not None:
            sweep.add(truth, band.probabilities[..., 1])
        if loss is not None and sample.labels.size <= LARGEST_LOSS_PX:
            kept.append(band.probabilities)
    height, width = sample.labels.shape
    return ImageScore(
        source=item.source,
        name=item.stem,
        weight=item.weight,
        size=(width, height),
        counts=confusion.counts,
        entropy=entropy,
        training_loss=loss(sample.labels, np.concatenate(kept)) if loss and kept else None,
    )


def predict_labels(model: TiledModel, rgb: Pixels, *, threshold: float | None = None) -> Labels:
    """Return the classes, `uint8` `(h, w)`, of an image `(h, w, 3)` at the model's um/px."""
    background = model.card.background_index
    return np.concatenate(
        [label_band(band, background=background, threshold=threshold) for band in iter_image(model, rgb)]
    )


def choose_threshold(card: ModelCard, wanted: float | None) -> float | None:
    """Return the threshold that decides: the one wanted, or that of the card.

    Raises:
        OptionError: The model has more than two classes.
    """
    if wanted is not None and len(card.class_names) != 2:
        raise OptionError(
            f"--threshold is {wanted:g}, but the model has {len(card.class_names)} classes, expected two; "
            "leave it away"
        )
    return card.output.threshold if wanted is None else wanted


def sum_entropy(truth: Labels, probabilities: Floats) -> float:
    """Return the sum over pixels of `-log p`, `p` being the probability of the true class.

    Args:
        truth: `(h, w)` class indices.
        probabilities: `(h, w, classes)`.
    """
    chosen = np.take_along_axis(probabilities, truth[..., None].astype(np.intp), axis=-1)
    return -float(np.log(np.clip(chosen, LEAST_PROBABILITY, 1)).sum(dtype=np.float64))


def read_training_loss(training: Mapping[str, Any]) -> Loss | None:
    """Return the loss that a model was trained with, of an image; `None` where it names none that is known.

    Args:
        training: What the model's card or metadata say of its training.
    """
    terms = training.get("loss")
    if not isinstance(terms, dict) or not terms or not set(terms) <= set(LOSSES):
        return None
    weights = tuple(training.get("class_weights") or ())
    loss = build_loss(LossOptions(tuple(terms.items()), weights))

    def measure(labels: Labels, probabilities: Floats) -> float:
        from keras import ops

        return float(ops.convert_to_numpy(loss(labels[None], ops.convert_to_tensor(probabilities[None]))))

    return measure
