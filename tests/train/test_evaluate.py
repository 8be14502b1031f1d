from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from keras import ops

from histoseg.card import InputSpec, ModelCard, OutputSpec, Tiling
from histoseg.errors import OptionError
from histoseg.score import count_confusion
from histoseg_train.architectures import UnetOptions, build_unet
from histoseg_train.dataset import Item, MaskRule, list_items
from histoseg_train.evaluation.figures import describe_evaluation, find_best_threshold
from histoseg_train.evaluation.scores import (
    Evaluation,
    evaluate_store,
    predict_labels,
    read_training_loss,
    sum_entropy,
)
from histoseg_train.evaluation.sheet import choose_images, draw_sheet
from histoseg_train.evaluation.tables import list_classes
from histoseg_train.evaluation.tiled import TiledModel, choose_tiling, iter_image, lay_grid, wrap_network
from histoseg_train.images import Sample, SampleStore
from histoseg_train.losses import LossOptions, build_loss, cross_entropy_loss
from histoseg_train.metadata import KerasMetadata
from histoseg_train.receptive import find_receptive_field

COLORS = ("#ffffff", "#00a000", "#0000ff")
METADATA = KerasMetadata(
    "unet-w2-d1", ("background", "a", "b"), COLORS, 0.5, "unit", (32, 32), training={"stride_multiple": 2}
)
ITEM = Item("one", "im", Path(), Path(), None, MaskRule(), 1.0, held_out=True)


@dataclass(frozen=True)
class Echo:
    """A model that takes the class from the red channel and how sure it is from the green one."""

    card: ModelCard
    batch_size: None = None

    def run(self, tiles: np.ndarray) -> np.ndarray:
        count = len(self.card.class_names)
        chosen = np.eye(count, dtype=np.float32)[tiles[..., 0]]
        sure = tiles[..., 1:2].astype(np.float32) / 255
        return chosen * sure + (1 - sure) / count


def echo(classes: int, *, side: int = 32, overlap: int = 4, halo: int = 0, stride: int = 2) -> TiledModel:
    card = ModelCard(
        "echo", METADATA.class_names[:classes], COLORS[:classes], 0.5, (side, side),
        InputSpec("x", "NHWC", "uint8", "RGB", (None, None, None, 3)),
        OutputSpec("y", "NHWC", "softmax", classes), Tiling(stride, halo, overlap), "fp32",
    )  # fmt: skip
    return TiledModel(Echo(card), "echo", shrinks=True)


class Store(list):
    """Samples, of two sources in turn."""

    @property
    def items(self) -> list[Item]:
        return [replace(ITEM, stem=f"im{i}", source=("one", "two")[i % 2]) for i in range(len(self))]


def sample(truth: np.ndarray, predicted: np.ndarray, sure: int | np.ndarray = 255) -> Sample:
    rgb = np.zeros((*truth.shape, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = predicted, sure
    return Sample(rgb, truth)


def figures(result: Evaluation) -> dict[str, Any]:
    return describe_evaluation(result, model={}, data="data")


def labels(classes: int) -> st.SearchStrategy[np.ndarray]:
    shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
    return arrays(np.uint8, shapes, elements=st.integers(0, classes - 1))


@st.composite
def stores(draw: st.DrawFn, classes: int = 3) -> Store:
    truths = draw(st.lists(labels(classes), min_size=1, max_size=4))
    same = arrays(np.uint8, (9, 9), elements=st.integers(0, classes - 1))
    return Store(sample(truth, draw(same)[: truth.shape[0], : truth.shape[1]]) for truth in truths)


@settings(max_examples=25, deadline=None)
@given(store=stores())
def test_pooled_figures_are_those_of_all_pixels_at_once(store: Store) -> None:
    document = figures(evaluate_store(echo(3), store))
    truth = np.concatenate([each.labels.ravel() for each in store])
    guess = np.concatenate([each.rgb[..., 0].ravel() for each in store])
    pooled = document["pooled"]
    np.testing.assert_array_equal(pooled["confusion"], count_confusion(truth, guess, classes=3))
    np.testing.assert_array_equal(
        pooled["confusion"], sum(np.array(image["confusion"]) for image in document["images"])
    )
    assert pooled["accuracy"] == pytest.approx(np.mean(truth == guess), abs=1e-6)
    assert sum(source["pixels"] for source in document["sources"]) == pooled["pixels"] == truth.size
    for index, row in enumerate(pooled["classes"]):
        in_truth, found = np.sum(truth == index), np.sum(guess == index)
        hits = np.sum((truth == index) & (guess == index))
        assert row["recall"] == (pytest.approx(hits / in_truth, abs=1e-6) if in_truth else None)
        assert row["precision"] == (pytest.approx(hits / found, abs=1e-6) if found else None)


@settings(max_examples=15, deadline=None)
@given(truth=labels(3))
def test_a_perfect_prediction_scores_one_and_an_absent_class_nothing(truth: np.ndarray) -> None:
    document = figures(evaluate_store(echo(3), Store([sample(truth, truth)])))
    for index, row in enumerate(document["pooled"]["classes"]):
        expected = 1.0 if np.any(truth == index) else None
        assert {row[key] for key in ("dice", "iou", "precision", "recall")} == {expected}
    assert document["dice"] == (1.0 if truth.any() else None)
    assert document["pooled"]["loss"] == pytest.approx(0, abs=1e-6)


def test_the_mean_of_images_is_told_with_its_standard_deviation() -> None:
    truth = np.ones((4, 4), np.uint8)
    half, empty = truth.copy(), np.zeros_like(truth)
    half[:2] = 0
    store = Store([sample(truth, truth), sample(truth, half), sample(empty, empty)])
    pooled = figures(evaluate_store(echo(2), store))["pooled"]
    assert pooled["image_dice_count"] == 2, "an image without foreground has no Dice"
    assert pooled["image_dice_mean"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)
    assert pooled["image_dice_sd"] == pytest.approx(np.std([1, 2 / 3], ddof=1), abs=1e-6)
    assert pooled["dice"] == pytest.approx(2 * 24 / (32 + 24), abs=1e-6)


def test_the_headline_weighs_sources_as_training_does() -> None:
    truth = np.ones((4, 4), np.uint8)
    half = np.where(np.arange(4) < 2, 1, 0)[:, None].repeat(4, 1).astype(np.uint8)
    result = evaluate_store(echo(2), Store([sample(truth, truth), sample(truth, half)]))
    scores = tuple(replace(score, weight={"one": 3.0, "two": 1.0}[score.source]) for score in result.scores)
    assert figures(replace(result, scores=scores))["dice"] == pytest.approx((3 + 2 / 3) / 4, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), threshold=st.sampled_from([0.05, 0.3, 0.5, 0.8]))
def test_the_sweep_says_what_a_threshold_would_give(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    store = Store(
        sample(
            rng.integers(0, 2, (9, 7)).astype(np.uint8),
            rng.integers(0, 2, (9, 7)).astype(np.uint8),
            rng.integers(0, 256, (9, 7)),
        )
        for _ in range(3)
    )
    document = figures(evaluate_store(echo(2), store, threshold=threshold))
    row = next(row for row in document["thresholds"] if row["threshold"] == threshold)
    second = document["pooled"]["classes"][1]
    assert {key: second[key] for key in ("dice", "precision", "recall")} == {
        key: row[key] for key in ("dice", "precision", "recall")
    }
    best = max(row["dice"] for row in document["thresholds"])
    assert best == next(
        row["dice"] for row in document["thresholds"] if row["threshold"] == document["best_threshold"]
    )


def test_of_equal_thresholds_the_middle_one_is_best() -> None:
    rows = [{"threshold": t, "dice": 0.5, "precision": 1.0, "recall": 1.0} for t in (0.1, 0.45, 0.9)]
    assert find_best_threshold(rows) == 0.45
    assert find_best_threshold([{**rows[0], "dice": None}]) is None


def test_a_threshold_needs_two_classes() -> None:
    with pytest.raises(OptionError, match="3 classes, expected two"):
        evaluate_store(echo(3), Store(), threshold=0.5)


def test_losses_are_those_of_training() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (6, 5)).astype(np.uint8)
    raw = rng.random((6, 5, 3)).astype(np.float32)
    probabilities = raw / raw.sum(axis=-1, keepdims=True)
    mean = float(ops.convert_to_numpy(cross_entropy_loss(truth[None], probabilities[None])))
    assert sum_entropy(truth, probabilities) / truth.size == pytest.approx(mean, rel=1e-5)
    terms = {"ce": 0.5, "tversky": 2.0}
    measure = read_training_loss({"loss": terms, "class_weights": [1, 2, 3]})
    wanted = build_loss(LossOptions(tuple(terms.items()), (1, 2, 3)))
    assert measure is not None
    assert measure(truth, probabilities) == pytest.approx(
        float(ops.convert_to_numpy(wanted(truth[None], ops.convert_to_tensor(probabilities[None]))))
    )
    assert read_training_loss({}) is None
    assert read_training_loss({"loss": {"hinge": 1.0}}) is None, "of somebody else's card"


@given(stride=st.sampled_from([1, 2, 8, 32]), strides=st.integers(1, 40), reach=st.integers(0, 400))
def test_any_tile_can_be_laid(stride: int, strides: int, reach: int) -> None:
    side = stride * strides
    tiling = choose_tiling(side, stride, reach)
    model = echo(2, side=side, overlap=tiling.overlap_px, halo=tiling.halo_px, stride=stride)
    grid = lay_grid(model, (5 * side + 1, side))
    assert grid.y.count == 1
    assert grid.x.step % stride == 0
    assert tiling.halo_px <= min(reach, side // 4)
    assert grid.x.write_range(grid.x.count - 1)[1] == 5 * side + 1


@settings(max_examples=15, deadline=None)
@given(truth=arrays(np.uint8, (23, 31), elements=st.integers(0, 1)), halo=st.sampled_from([0, 1, 2]))
def test_tiles_change_nothing_of_a_network_without_surroundings(truth: np.ndarray, halo: int) -> None:
    rgb = sample(truth, truth).rgb
    tiled = predict_labels(echo(2, side=12, overlap=6, halo=halo), rgb)
    np.testing.assert_array_equal(tiled, truth)


def run_network(network: Any, rgb: np.ndarray) -> np.ndarray:
    rest = [(0, -side % 2) for side in rgb.shape[:2]]
    pixels = np.pad(rgb, (*rest, (0, 0)), mode="reflect").astype(np.float32) / 255
    whole = ops.convert_to_numpy(network(pixels[None], training=False))[0]
    return whole[: rgb.shape[0], : rgb.shape[1]]


@pytest.fixture(scope="module")
def network() -> Any:
    return build_unet((None, None, 3), 3, options=UnetOptions(width=4, depth=1))


def test_tiles_of_a_convolutional_network_give_the_whole_image(network: Any) -> None:
    reach = find_receptive_field(network).width_px // 2
    model = wrap_network(network, METADATA, tile=64)
    assert model.card.tiling.halo_px == reach, "the tile is large enough for all of it"
    rgb = np.random.default_rng(0).integers(0, 256, (151, 98, 3)).astype(np.uint8)
    bands = list(iter_image(model, rgb))
    tiled, whole = np.concatenate([band.probabilities for band in bands]), run_network(network, rgb)
    assert len(bands) > 1
    assert tiled.shape == whole.shape
    # the borders of the image are mirrored in tiles, and filled with zeros by the network
    inside = (slice(reach, -reach), slice(reach, -reach))
    np.testing.assert_allclose(tiled[inside], whole[inside], atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (33, 47), (2, 3)])
def test_a_small_image_is_one_tile(network: Any, shape: tuple[int, int]) -> None:
    model = wrap_network(network, METADATA, tile=64)
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    (band,) = iter_image(model, rgb)
    np.testing.assert_allclose(band.probabilities, run_network(network, rgb), atol=1e-6)


def test_a_tile_must_suit_the_network(network: Any) -> None:
    with pytest.raises(OptionError, match="expected a multiple of 2"):
        wrap_network(network, METADATA, tile=63)


def test_three_classes_of_real_nuclei(network: Any, shared_data: Path) -> None:
    folder = shared_data / "nucls"
    items = [replace(item, spacing_um_px=0.25) for item in list_items(folder).items[:2]]
    store = SampleStore(items, classes=3, spacing_um_px=0.5)
    document = figures(evaluate_store(wrap_network(network, METADATA), store))
    assert document["thresholds"] == []
    assert document["best_threshold"] is None
    assert [image["width_px"] for image in document["images"]] == [128, 128]
    assert [row["class"] for row in list_classes(document)] == ["background", "a", "b"] * 2
    truth = np.bincount(np.concatenate([store[i].labels.ravel() for i in (0, 1)]), minlength=3)
    assert [row["truth_pixels"] for row in document["pooled"]["classes"]] == truth.tolist()


@given(dices=st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=30), count=st.integers(1, 40))
def test_the_sheet_shows_the_worst_and_the_best(dices: list[float | None], count: int) -> None:
    chosen = choose_images(dices, count)
    known = [dice for dice in dices if dice is not None]
    assert len(chosen) == len(set(chosen)) == min(count, len(known) or len(dices))
    shown = [dices[index] for index in chosen]
    if known:
        assert shown == sorted(shown)
        assert shown[0] == min(known)
        assert count == 1 or shown[-1] == max(known)


@pytest.mark.parametrize("shape", [(30, 50), (700, 900), (1, 1)])
def test_the_sheet_has_three_cells_a_row(shape: tuple[int, int]) -> None:
    truth = np.zeros(shape, np.uint8)
    truth[: shape[0] // 2] = 1
    store = Store([sample(truth, np.zeros_like(truth), 200)])
    image = {"dice": None, "source": "ä", "image": "im0", "width_px": shape[1], "height_px": shape[0]}
    predict: Callable[[np.ndarray], np.ndarray] = lambda rgb: rgb[..., 0]  # noqa: E731
    sheet = draw_sheet(store, [image], [0], predict=predict, names=("background", "ö"), colors=COLORS[:2])
    assert sheet.shape[1] == 3 * 520
    assert sheet.dtype == np.uint8
    assert (sheet[:22] == (0, 160, 0)).all(axis=-1).any(), "the legend"
    outlined = [(cell == (0, 160, 0)).all(axis=-1).any() for cell in np.split(sheet[22:], 3, axis=1)]
    assert outlined == [False, bool(truth.any()) and shape != (1, 1), False]
