from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from histoseg_train.augment import (
    ELASTIC_SHIFT_PX,
    AugmentOptions,
    change_colors,
    draw_bend,
    draw_patch,
    fold_tissue,
    jitter_stains,
    turn,
)
from histoseg_train.images import Sample

PLAIN = AugmentOptions().without_color()
EXACT = AugmentOptions(scale=1).without_color()


def image_that_shows_its_mask(height: int, width: int, seed: int) -> Sample:
    """Return an image whose three channels are its own mask, in blocks."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 2, (height // 8 + 1, width // 8 + 1)).astype(np.uint8)
    labels = np.kron(blocks, np.ones((8, 8), np.uint8))[:height, :width]
    return Sample(np.repeat(labels[..., None] * 255, 3, axis=2), labels)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(9, 90),
    width=st.integers(9, 90),
    size=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 999),
)
def test_image_and_mask_move_together(height: int, width: int, size: int, seed: int) -> None:
    sample = image_that_shows_its_mask(height, width, seed)
    patch = draw_patch(sample, np.random.default_rng(seed), size=size, foreground=0.5, options=EXACT)
    assert patch.rgb.shape == (size, size, 3)
    np.testing.assert_array_equal(patch.rgb[..., 0] > 127, patch.labels > 0)


@settings(deadline=None, max_examples=40)
@given(
    size=st.sampled_from([32, 64]), seed=st.integers(0, 999), classes=st.integers(2, 6), bent=st.booleans()
)
def test_soft_labels_move_with_the_image(size: int, seed: int, classes: int, bent: bool) -> None:
    sample = image_that_shows_its_mask(80, 100, seed)
    soft = np.zeros((classes, 80, 100), np.uint8)
    soft[-1], soft[0] = sample.rgb[..., 0], 255 - sample.rgb[..., 0]
    options = AugmentOptions(scale=1.3, elastic=float(bent)).without_color()
    rng = np.random.default_rng(seed)
    patch = draw_patch(replace(sample, soft_labels=soft), rng, size=size, foreground=0.5, options=options)
    assert patch.soft_labels is not None
    np.testing.assert_array_equal(patch.soft_labels[-1], patch.rgb[..., 0])
    assert np.abs(patch.soft_labels.sum(axis=0, dtype=int) - 255).max() <= 1


@settings(deadline=None, max_examples=40)
@given(size=st.sampled_from([32, 64]), seed=st.integers(0, 999), scale=st.floats(1, 2))
def test_image_and_mask_are_scaled_together(size: int, seed: int, scale: float) -> None:
    sample = image_that_shows_its_mask(80, 100, seed)
    options = AugmentOptions(scale=scale).without_color()
    patch = draw_patch(sample, np.random.default_rng(seed), size=size, foreground=0.5, options=options)
    # interpolated pixels near 127 may fall on either side, never clearly on the wrong one
    assert not np.any((patch.rgb[..., 0] > 192) & (patch.labels == 0))
    assert not np.any((patch.rgb[..., 0] < 64) & (patch.labels == 1))


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.sampled_from([16, 64]),
    seed=st.integers(0, 999),
)
def test_image_and_mask_are_bent_together(height: int, width: int, size: int, seed: int) -> None:
    sample = image_that_shows_its_mask(height, width, seed)
    options = AugmentOptions(scale=1.2, elastic=1).without_color()
    patch = draw_patch(sample, np.random.default_rng(seed), size=size, foreground=0.5, options=options)
    assert patch.rgb.shape == (size, size, 3)
    assert not np.any((patch.rgb[..., 0] > 192) & (patch.labels == 0))
    assert not np.any((patch.rgb[..., 0] < 64) & (patch.labels == 1))


@given(size=st.sampled_from([64, 256, 512]), seed=st.integers(0, 9999))
def test_bends_are_smooth_and_fold_nothing(size: int, seed: int) -> None:
    bend = draw_bend(np.random.default_rng(seed), size=size)
    assert 0 < np.abs(bend).max() < 3 * ELASTIC_SHIFT_PX
    # a pixel that looks further back than its neighbour to the left or above would show tissue twice
    assert np.diff(bend[..., 0], axis=1).min() > -1
    assert np.diff(bend[..., 1], axis=0).min() > -1


def test_bends_move_tissue() -> None:
    sample = image_that_shows_its_mask(128, 128, 3)
    plain, bent = (
        draw_patch(
            sample,
            np.random.default_rng(5),
            size=128,
            foreground=0,
            options=replace(EXACT, elastic=share, turns=False),
        )
        for share in (0, 1)
    )
    np.testing.assert_array_equal(plain.labels, sample.labels)
    assert 0.05 < (plain.labels != bent.labels).mean() < 0.5


@given(turns=st.integers(0, 3), mirrored=st.booleans())
def test_turns_are_bijections(turns: int, mirrored: bool) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    sample = Sample(np.repeat(labels[..., None], 3, axis=2), labels)
    turned = turn(sample, quarter_turns=turns, mirrored=mirrored)
    assert sorted(turned.labels.ravel()) == list(range(12))
    np.testing.assert_array_equal(turned.rgb[..., 1], turned.labels)


def test_the_eight_turns_differ() -> None:
    sample = Sample(np.zeros((3, 3, 3), np.uint8), np.arange(9, dtype=np.uint8).reshape(3, 3))
    seen = {
        turn(sample, quarter_turns=q, mirrored=m).labels.tobytes() for q in range(4) for m in (False, True)
    }
    assert len(seen) == 8


def noise(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)


def test_colours_stay_when_switched_off() -> None:
    np.testing.assert_array_equal(change_colors(noise(), np.random.default_rng(0), options=PLAIN), noise())


@given(seed=st.integers(0, 9999))
def test_colours_keep_shape_and_dtype(seed: int) -> None:
    changed = change_colors(noise(seed), np.random.default_rng(seed), options=AugmentOptions(blur=1, jpeg=1))
    assert changed.shape == (16, 16, 3)
    assert changed.dtype == np.uint8


def test_no_spread_of_stains_changes_nothing() -> None:
    same = jitter_stains(noise(), np.random.default_rng(0), spread=0)
    assert np.abs(same.astype(int) - noise()).max() <= 1


def test_stain_jitter_leaves_glass_nearly_white() -> None:
    glass = np.full((4, 4, 3), 250, np.uint8)
    for seed in range(50):
        assert jitter_stains(glass, np.random.default_rng(seed), spread=0.3).min() > 220


@given(seed=st.integers(0, 99))
def test_folds_darken_and_leave_white_alone(seed: int) -> None:
    folded = fold_tissue(noise(seed), np.random.default_rng(seed))
    assert np.all(folded.astype(int) <= noise(seed).astype(int) + 1)
    glass = np.full((16, 16, 3), 255, np.uint8)
    np.testing.assert_array_equal(fold_tissue(glass, np.random.default_rng(seed)), glass)


def test_foreground_is_sought() -> None:
    labels = np.zeros((256, 256), np.uint8)
    labels[100:140, 100:140] = 1
    sample = Sample(np.zeros((256, 256, 3), np.uint8), labels)

    def share(foreground: float) -> float:
        rng = np.random.default_rng(0)
        draws = [
            draw_patch(sample, rng, size=32, foreground=foreground, options=EXACT).labels.any()
            for _ in range(200)
        ]
        return float(np.mean(draws))

    assert share(1.0) > share(0.0) + 0.15


def test_rare_classes_are_sought_as_often_as_others() -> None:
    labels = np.zeros((200, 200), np.uint8)
    labels[:, :100] = 1
    labels[90:110, 180:] = 2  # one pixel in a hundred
    sample = Sample(np.zeros((200, 200, 3), np.uint8), labels)
    rng = np.random.default_rng(0)
    draws = [draw_patch(sample, rng, size=16, foreground=1, options=EXACT).labels for _ in range(300)]
    found = [sum(bool((draw == index).any()) for draw in draws) for index in (1, 2)]
    assert 120 < found[0] < 180
    assert 120 < found[1] < 180


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (64, 3)])
def test_images_smaller_than_a_patch_are_mirrored(shape: tuple[int, int]) -> None:
    sample = Sample(np.full((*shape, 3), 9, np.uint8), np.ones(shape, np.uint8))
    patch = draw_patch(sample, np.random.default_rng(1), size=48, foreground=1, options=PLAIN)
    assert np.all(patch.rgb == 9)
    assert np.all(patch.labels == 1)


@given(st.integers(0, 2**32 - 1))
def test_dim_fluorescence_is_not_lost(seed: int) -> None:
    rgb = np.full((40, 40, 3), 4, np.uint8)
    rgb[10:30, 10:30] = 22
    options = replace(AugmentOptions(), stain=0, fold=0, blur=0, jpeg=0)
    changed = change_colors(rgb, np.random.default_rng(seed), options=options).astype(int).sum(axis=-1)
    assert changed[20, 20] >= changed[2, 2] + 12
