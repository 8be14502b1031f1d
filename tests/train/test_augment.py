from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from histoseg_train.augment import AugmentOptions, change_colors, draw_patch, fold_tissue, jitter_stains, turn
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
@given(size=st.sampled_from([32, 64]), seed=st.integers(0, 999), scale=st.floats(1, 2))
def test_image_and_mask_are_scaled_together(size: int, seed: int, scale: float) -> None:
    sample = image_that_shows_its_mask(80, 100, seed)
    options = AugmentOptions(scale=scale).without_color()
    patch = draw_patch(sample, np.random.default_rng(seed), size=size, foreground=0.5, options=options)
    # interpolated pixels near 127 may fall on either side, never clearly on the wrong one
    assert not np.any((patch.rgb[..., 0] > 192) & (patch.labels == 0))
    assert not np.any((patch.rgb[..., 0] < 64) & (patch.labels == 1))


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


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (64, 3)])
def test_images_smaller_than_a_patch_are_mirrored(shape: tuple[int, int]) -> None:
    sample = Sample(np.full((*shape, 3), 9, np.uint8), np.ones(shape, np.uint8))
    patch = draw_patch(sample, np.random.default_rng(1), size=48, foreground=1, options=PLAIN)
    assert np.all(patch.rgb == 9)
    assert np.all(patch.labels == 1)
