"""The document of an evaluation: every figure that its tables and files show, from added-up counts.

Counts are added up first and divided once; see `histoseg_train.metrics`. A figure that is not defined, such
as the Dice of a class that neither truth nor prediction holds, is `None`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histoseg import __version__
from histoseg.score import score_confusion
from histoseg_train.evaluation.scores import Evaluation, ImageScore
from histoseg_train.metrics import foreground_dice, weighted_dice

if TYPE_CHECKING:
    from histoseg.card import ModelCard

DIGITS = 6
CLASS_FIGURES = ("dice", "iou", "precision", "recall")


def describe_evaluation(
    evaluation: Evaluation, *, model: Mapping[str, Any], data: str, all_images: bool = False
) -> dict[str, Any]:
    """Return all figures, ready for JSON.

    Args:
        evaluation: The scores.
        model: What `histoseg_train.evaluation.tiled.describe_model` says.
        data: Where the images came from.
        all_images: Whether those that were trained on are among them by intention.

    Returns:
        `dice`: the mean over the sources, weighted as training draws from them, of their pooled Dice without
        the background; `pooled`, `sources` and `images`: see `describe_scores`; `thresholds` and
        `best_threshold` for two classes, else empty and `None`.
    """
    card, scores = evaluation.card, evaluation.scores
    sources = [
        {"source": source, "weight": group[0].weight, **describe_scores(group, card)}
        for source, group in _group(scores).items()
    ]
    document = {
        "histoseg": __version__,
        "model": model,
        "data": {"path": data, "images": len(scores), "all_images": all_images},
        "dice": weighted_dice(
            {source["source"]: source["dice"] for source in sources},
            {source["source"]: source["weight"] for source in sources},
        ),
        "class_names": card.class_names,
        "spacing_um_px": card.spacing_um_px,
        "threshold": evaluation.threshold,
        "pooled": describe_scores(scores, card),
        "sources": sources,
        "thresholds": evaluation.thresholds,
        "best_threshold": find_best_threshold(evaluation.thresholds),
        "images": [_describe_image(score, card) for score in scores],
    }
    return _round(document)


def describe_scores(scores: Sequence[ImageScore], card: ModelCard) -> dict[str, Any]:
    """Return the figures of some images, one or more, taken together.

    Returns:
        `images`, `pixels`; `loss`, the mean cross-entropy of a pixel; `training_loss`, the mean over images;
        `accuracy`; `dice`, the mean over the classes but the background; `mean_iou`, over all classes;
        `image_dice` and the like: mean, standard deviation (of a sample) and number of the single images'
        Dice; `classes` with these for each class; `confusion`, rows truth and columns prediction.
    """
    counts = np.sum([score.counts for score in scores], axis=0)
    figures = score_confusion(counts, card.class_names)
    losses = [score.training_loss for score in scores if score.training_loss is not None]
    singly = [score_confusion(score.counts, card.class_names)["classes"] for score in scores]
    return {
        "images": len(scores),
        "pixels": int(counts.sum()),
        "loss": sum(score.entropy for score in scores) / int(counts.sum()),
        "training_loss": float(np.mean(losses)) if losses else None,
        "accuracy": figures["accuracy"],
        "dice": foreground_dice(counts, background=card.background_index),
        "mean_iou": figures["mean_iou"],
        **_spread(foreground_dice(score.counts, background=card.background_index) for score in scores),
        "classes": [
            {
                "class": name,
                "truth_pixels": int(counts[index].sum()),
                "predicted_pixels": int(counts[:, index].sum()),
                **{key: figures["classes"][index][key] for key in CLASS_FIGURES},
                **_spread(classes[index]["dice"] for classes in singly),
            }
            for index, name in enumerate(card.class_names)
        ],
        "confusion": figures["confusion"],
    }


def find_best_threshold(thresholds: Sequence[dict[str, float | None]]) -> float | None:
    """Return the threshold of the highest Dice, of equals the one nearest to one half."""
    known = [row for row in thresholds if row["dice"] is not None]
    if not known:
        return None
    best = max(known, key=lambda row: (row["dice"], -abs((row["threshold"] or 0) - 0.5)))
    return best["threshold"]


def _describe_image(score: ImageScore, card: ModelCard) -> dict[str, Any]:
    width, height = score.size
    figures = describe_scores([score], card)
    # of one image there is no spread
    figures["classes"] = [_drop_spread(figures_of_class) for figures_of_class in figures["classes"]]
    words = {"source": score.source, "image": score.name, "width_px": width, "height_px": height}
    return words | _drop_spread(figures)


def _drop_spread(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if key != "images" and "image_dice" not in key}


def _spread(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """Return mean, standard deviation and number of the values that are defined."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return {
        "image_dice_mean": float(np.mean(known)) if known else None,
        "image_dice_sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "image_dice_count": len(known),
    }


def _group(scores: Iterable[ImageScore]) -> dict[str, list[ImageScore]]:
    groups: dict[str, list[ImageScore]] = {}
    for score in scores:
        groups.setdefault(score.source, []).append(score)
    return groups


def _round(value: Any) -> Any:
    """Return a JSON value whose numbers are rounded, once, and whose NaN are `None`."""
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _round(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_round(item) for item in value]
    return value
