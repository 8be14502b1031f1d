"""A network rebuilt for another tile is compared with itself at its own size."""

from __future__ import annotations

import numpy as np
import pytest

from histoseg_export.resized import compare_sizes, explain_resizing
from histoseg_export.retarget import fix_size
from histoseg_export.tiles import open_source


def build(*, aware: bool, size=64):
    import keras
    from keras import layers

    image = keras.Input((size, size, 3))
    x = layers.AveragePooling2D(4)(image)
    if aware:  # sees how large the tile is: the padding's share of the mean
        x = layers.Subtract()([x, layers.GlobalAveragePooling2D(keepdims=True)(layers.ZeroPadding2D(3)(x))])
    maps = layers.Conv2D(2, 1, name="maps")(layers.UpSampling2D(4)(x))
    model = keras.Model(image, maps)
    model.get_layer("maps").set_weights([np.array([[[[1, -1]] * 3]]), np.array([-0.9, 0.9]) * (not aware)])
    return model


def cut_demo(width, height):
    """Return four images of the demo slide."""
    image = open_source(None, (width, height))[0][0]
    return np.stack([image[place : place + height, place : place + width] for place in range(0, 160, 40)])


def predict(model, tiles):
    return model.predict(tiles / np.float32(255), verbose=0)


@pytest.mark.parametrize("tile", [(32, 32), (96, 128), (64, 160)])
@pytest.mark.parametrize("aware", [False, True])
def test_agreement_tells_networks_that_know_their_size(tile, aware, keras_files):
    model, images = build(aware=aware), cut_demo(max(64, tile[0]), max(64, tile[1]))
    fixed = fix_size(model, tile)
    found = compare_sizes(model, fixed, images, predict, stride=4, halo=0)
    assert (found < 1) if aware else (found == 1)
    assert bool(explain_resizing(found, tile)) == (found < 0.97)


def test_networks_of_any_size_and_small_ones_are_not_compared(keras_files):
    images = cut_demo(96, 96)
    anything = build(aware=False, size=None)
    assert compare_sizes(anything, fix_size(anything, (64, 64)), images, predict, stride=4, halo=0) is None
    model = build(aware=False)
    assert compare_sizes(model, fix_size(model, (96, 96)), images, predict, stride=4, halo=30) is None
    assert explain_resizing(None, (64, 64)) == ()
