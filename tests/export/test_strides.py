"""Strides multiply along the graph, whatever the size of its maps."""

from __future__ import annotations

import onnx
import pytest

from histoseg_export.convert import convert_model
from histoseg_export.describe import ExportOptions, describe_model
from histoseg_export.probe import Measurement, plan_tiling
from histoseg_export.strides import read_stride


def graph_of(layers_of, tile=64) -> onnx.ModelProto:
    import keras

    image = keras.Input((None, None, 3))
    model = keras.Model(image, keras.layers.Conv2D(2, 1)(layers_of(keras.layers, image)))
    described = describe_model(model, None, ExportOptions(tile=tile, spacing_um_px=0.5))
    return convert_model(model, described)


def pyramid(depth, *, learned):
    def build(layers, x):
        for _ in range(depth):
            x = layers.MaxPooling2D()(x)
        for _ in range(depth):
            x = layers.Conv2DTranspose(3, 2, strides=2)(x) if learned else layers.UpSampling2D()(x)
        return x

    return build


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("tile", [16, 64])
def test_a_small_tile_hides_no_stride(depth, learned, tile, keras_files):
    assert read_stride(graph_of(pyramid(depth, learned=learned), tile)) == 2**depth


def test_strides_of_two_branches_have_a_common_multiple(keras_files):
    def branches(layers, x):
        three = layers.UpSampling2D(3)(layers.AveragePooling2D(3)(x))
        return layers.Add()([three, layers.UpSampling2D(2)(layers.MaxPooling2D()(x))])

    assert read_stride(graph_of(branches, 48)) == 6


def test_unpadded_convolutions_do_not_hide_a_stride(keras_files):
    def unpadded(layers, x):
        x = layers.MaxPooling2D()(layers.Conv2D(3, 3)(layers.MaxPooling2D()(layers.Conv2D(3, 3)(x))))
        x = layers.Conv2DTranspose(3, 3)(layers.UpSampling2D()(x))
        return layers.Conv2DTranspose(3, 3)(layers.UpSampling2D()(x))

    assert read_stride(graph_of(unpadded, 66)) == 4


def test_context_has_no_stride(keras_files):
    def context(layers, x):
        mean = layers.GlobalAveragePooling2D(keepdims=True)(x)
        few = layers.UpSampling2D(16)(layers.AveragePooling2D(16)(x))
        return layers.Multiply()([layers.Add()([x, few]), mean])

    assert read_stride(graph_of(context, 64)) == 1


@pytest.mark.parametrize(("tile", "stride"), [(16, 8), (32, 8), (64, 32)])
def test_tiles_of_few_strides_still_advance_by_strides(tile, stride):
    tiling = plan_tiling(Measurement(stride, False, tile // 4, 0.0, 0.0, None, False), (tile, tile))
    assert tiling.stride_multiple == stride
    assert (tile - tiling.overlap_px) % stride == 0
