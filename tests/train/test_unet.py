from __future__ import annotations

import keras
import numpy as np
import pytest

from histoseg_train.architectures import UnetOptions, build_unet

VARIANTS = [
    UnetOptions(width=2, depth=1),
    UnetOptions(width=2, depth=3, max_width=4),
    UnetOptions(width=3, depth=2, stem_stride=2),
    UnetOptions(width=2, depth=2, stem_stride=2, skip_width=2),
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: options.name)
def test_probabilities_at_the_size_of_the_input(options: UnetOptions) -> None:
    model = build_unet((None, None, 3), 3, options=options)
    multiple = options.stride_multiple
    pixels = np.random.default_rng(0).random((2, 2 * multiple, 3 * multiple, 3)).astype(np.float32)
    probabilities = keras.ops.convert_to_numpy(model(pixels))
    assert probabilities.shape == (*pixels.shape[:3], 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)
    assert probabilities.min() >= 0


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: options.name)
def test_the_network_commutes_with_shifts_by_its_stride(options: UnetOptions) -> None:
    """Tiling rests on this: away from the border, a shifted image gives shifted probabilities."""
    keras.utils.set_random_seed(0)
    model = build_unet((None, None, 3), 2, options=options)
    step = options.stride_multiple
    pixels = np.random.default_rng(0).random((1, 14 * step, 14 * step, 3)).astype(np.float32)
    whole = keras.ops.convert_to_numpy(model(pixels))
    shifted = keras.ops.convert_to_numpy(model(pixels[:, step:, step:]))
    middle = slice(6 * step, 8 * step)
    moved = slice(5 * step, 7 * step)
    np.testing.assert_allclose(shifted[:, moved, moved], whole[:, middle, middle], atol=1e-4)


def test_every_layer_is_named() -> None:
    model = build_unet((64, 64, 3), 2, options=VARIANTS[3])
    names = {layer.name for layer in model.layers}
    assert {"image", "stem_conv", "enc1_1_conv", "bottom_2_relu", "dec1_join", "probabilities"} <= names
    again = {layer.name for layer in build_unet((64, 64, 3), 2, options=VARIANTS[3]).layers}
    assert names == again, "a name that Keras made up changes from model to model"


def test_width_doubles_up_to_the_cap() -> None:
    options = UnetOptions(width=8, depth=4, max_width=32)
    assert [options.filters(level) for level in range(5)] == [8, 16, 32, 32, 32]
    assert options.name == "unet-w8-d4-m32"
    assert options.stride_multiple == 16


@pytest.mark.parametrize(
    "wrong",
    [{"width": 0}, {"depth": 0}, {"width": 8, "max_width": 4}, {"stem_stride": 3}, {"skip_width": 4}],
)
def test_impossible_sizes_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        UnetOptions(**wrong)
