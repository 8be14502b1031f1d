"""What training makes small, by name: cross-entropy, Dice, Tversky, focal loss, and weighted sums of them.

Every loss takes the truth and `float32` probabilities `(n, h, w, classes)` that sum to one, class 0 being the
background, and gives a scalar tensor. The truth is class indices `(n, h, w)`, and a perfect prediction then
comes to 0; or, from teachers, `float32` soft labels `(n, h, w, classes)` that sum to one. Without class
weights, all losses are then least where the probabilities are the soft labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from histoseg.errors import OptionError

LossTerms = tuple[tuple[str, float], ...]

# Keeps the overlap of an absent class defined; small against the pixels of a patch.
SMOOTH_PIXELS = 1.0

# Lin et al. 2017, table 1b
FOCAL_GAMMA = 2.0

# Salehi et al. 2017, table 1: what is missed costs more than what is wrongly found
TVERSKY_FALSE_POSITIVES, TVERSKY_FALSE_NEGATIVES = 0.3, 0.7


@dataclass(frozen=True)
class LossOptions:
    """A sum of losses."""

    terms: LossTerms = (("ce", 1.0), ("dice", 1.0))
    """Keys of `LOSSES`, each with its weight."""
    class_weights: tuple[float, ...] = ()
    """What a pixel of each class counts in `ce` and `focal`, the background first; empty: all the same."""


def parse_loss(text: str) -> LossTerms:
    """Return the terms of a sum such as `ce+dice` or `ce+0.5*focal`.

    Raises:
        OptionError: A name is unknown or comes twice, or a weight is not more than 0.
    """
    terms = tuple(_parse_term(part, text) for part in text.split("+"))
    if len({name for name, _ in terms}) < len(terms):
        raise OptionError(f"--loss is '{text}', expected every name once; add up its weights")
    return terms


def build_loss(options: LossOptions) -> Callable[[Any, Any], Any]:
    """Return the sum as a function of truth and probabilities."""

    def add_losses(truth: Any, probabilities: Any) -> Any:
        from keras import ops

        # sixteen bits hold neither the logarithm of a small probability nor a sum over a patch
        probabilities = ops.cast(probabilities, "float32")
        return sum(weight * loss(truth, probabilities) for weight, loss in losses)

    losses = [(weight, _bind(name, options.class_weights)) for name, weight in options.terms]
    return add_losses


def cross_entropy_loss(truth: Any, probabilities: Any, *, class_weights: Sequence[float] = ()) -> Any:
    """Return the mean over pixels of `-log p`, `p` being the probability of the true class.

    With class weights, the mean is weighted by those of the true classes (and divided by their sum).
    """
    truth, weights = _weigh_pixels(truth, class_weights)
    return _average(_measure_entropy(truth, probabilities), weights)


def focal_loss(truth: Any, probabilities: Any, *, class_weights: Sequence[float] = ()) -> Any:
    """Return the mean over pixels of `-(1 - p)^2 log p`, `p` being the probability of the true class.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002, equation 4 with gamma = 2: pixels that are right
    already hardly count. Class weights take the part of its alpha. Of soft labels, `-log p` is the
    cross-entropy.
    """
    from keras import ops

    truth, weights = _weigh_pixels(truth, class_weights)
    entropy = _measure_entropy(truth, probabilities)
    return _average((1 - ops.exp(-entropy)) ** FOCAL_GAMMA * entropy, weights)


def soft_dice_loss(truth: Any, probabilities: Any) -> Any:
    """Return one minus the soft Dice of the batch, averaged over the classes but the background.

    Milletari, Navab and Ahmadi 2016, https://arxiv.org/abs/1606.04797, without the squares:
    `1 - (2 TP + 1) / (2 TP + FP + FN + 1)`. Pixels of the whole batch are counted together, so that a patch
    without a class does not distort it.
    """
    return tversky_loss(truth, probabilities, false_positives=0.5, false_negatives=0.5)


def tversky_loss(
    truth: Any,
    probabilities: Any,
    *,
    false_positives: float = TVERSKY_FALSE_POSITIVES,
    false_negatives: float = TVERSKY_FALSE_NEGATIVES,
) -> Any:
    """Return one minus the Tversky index of the batch, averaged over the classes but the background.

    Salehi, Erdogmus and Gholipour 2017, https://arxiv.org/abs/1706.05721, equation 2, smoothed by half a
    pixel: `1 - (TP + 0.5) / (TP + a FP + b FN + 0.5)` with a = 0.3 and b = 0.7. `TP`, `FP` and `FN` are sums
    of probabilities over the pixels of the whole batch. With a = b = 0.5 it is `soft_dice_loss`.

    Of soft labels, the smaller of label and probability counts as hit: Wang et al. 2023,
    https://arxiv.org/abs/2303.16296. The product, which for class indices is the same, would be best where
    the likelier class is certain.
    """
    from keras import ops

    if _is_soft(truth):
        wanted, both = truth, ops.minimum(truth, probabilities)
    else:
        wanted = ops.one_hot(ops.cast(truth, "int32"), probabilities.shape[-1], dtype="float32")
        both = wanted * probabilities
    hits = ops.sum(both, axis=(0, 1, 2))
    wrong = ops.sum(probabilities, axis=(0, 1, 2)) - hits
    missed = ops.sum(wanted, axis=(0, 1, 2)) - hits
    smooth = SMOOTH_PIXELS / 2
    index = (hits + smooth) / (hits + false_positives * wrong + false_negatives * missed + smooth)
    return 1 - ops.mean(index[1:])


LOSSES: dict[str, Callable[..., Any]] = {
    "ce": cross_entropy_loss,
    "dice": soft_dice_loss,
    "tversky": tversky_loss,
    "focal": focal_loss,
}
WEIGHTED = ("ce", "focal")


def _parse_term(part: str, text: str) -> tuple[str, float]:
    number, _, name = part.rpartition("*")
    try:
        weight = float(number) if number else 1.0
    except ValueError:
        weight = math.nan
    if name.strip() not in LOSSES or not 0 < weight < math.inf:
        raise OptionError(
            f"--loss is '{text}', expected a sum of {', '.join(LOSSES)}, with weights as in ce+0.5*focal"
        )
    return name.strip(), weight


def _bind(name: str, class_weights: Sequence[float]) -> Callable[[Any, Any], Any]:
    loss = LOSSES[name]
    return partial(loss, class_weights=class_weights) if name in WEIGHTED and class_weights else loss


def _is_soft(truth: Any) -> bool:
    return len(truth.shape) == 4


def _measure_entropy(truth: Any, probabilities: Any) -> Any:
    """Return the cross-entropy of each pixel, `(n, h, w)`; Keras takes it from logits where it knows them."""
    from keras import ops

    if _is_soft(truth):
        return ops.categorical_crossentropy(truth, probabilities)
    return ops.sparse_categorical_crossentropy(ops.cast(truth, "int32"), probabilities)


def _weigh_pixels(truth: Any, class_weights: Sequence[float]) -> tuple[Any, Any]:
    """Return the truth to compare with, and what each pixel counts, `(n, h, w)`, or `None` for all the same.

    Soft labels are weighted class by class: a pixel counts their sum, and the truth is what they are of it.
    """
    from keras import ops

    if not class_weights:
        return truth, None
    by_class = ops.convert_to_tensor(class_weights, "float32")
    if not _is_soft(truth):
        return truth, ops.take(by_class, ops.cast(truth, "int32"))
    weighted = truth * by_class
    weights = ops.sum(weighted, axis=-1)
    return weighted / weights[..., None], weights


def _average(values: Any, weights: Any | None) -> Any:
    from keras import ops

    if weights is None:
        return ops.mean(values)
    return ops.sum(weights * values) / ops.sum(weights)
