"""The probes, on functions whose tiling is known."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.card import InputSpec, ModelCard, OutputSpec
from histoseg_export.probe import Measurement, _depths, find_halo, measure_tiling, plan_tiling, read_strides
from histoseg_export.tiles import cut_tiles, open_source

TILE = (64, 64)


@pytest.fixture(scope="module")
def images():
    sources, _ = open_source(None, TILE)
    return cut_tiles(sources, (96, 96), 4, seed=1)


def box(radius):
    """Give the mean darkness within `radius`, counting pixels outside the tile as zero."""

    def run(tiles):
        size = (2 * radius + 1, 2 * radius + 1)
        blurred = [cv2.blur(tile, size, borderType=cv2.BORDER_CONSTANT) for tile in tiles.astype(np.float32)]
        return two_classes(np.stack(blurred).mean(-1) / 255)

    return run


def pooled(stride):
    """Give one value to every cell of `stride` pixels."""

    def run(tiles):
        n, height, width, _ = tiles.shape
        cells = tiles.reshape(n, height // stride, stride, width // stride, stride, 3).mean((2, 4, 5)) / 255
        return two_classes(cells.repeat(stride, 1).repeat(stride, 2))

    return run


def global_mean(tiles):
    return two_classes((tiles / 255).mean(-1) * 0.5 + (tiles / 255).mean((1, 2, 3))[:, None, None] * 0.5)


def two_classes(values):
    nucleus = 1 / (1 + np.exp(20 * (values - 0.6)))
    return np.stack([1 - nucleus, nucleus], -1).astype(np.float32)


@pytest.mark.parametrize("radius", [0, 1, 3, 6])
def test_halo_and_reach_of_a_box_filter(radius, images):
    found = measure_tiling(box(radius), images, tile=TILE, graph_strides=[1])
    assert found.receptive_field_px == radius
    assert max(0, radius - 2) <= found.halo_px <= radius  # the outermost pixels weigh little
    assert found.residual_mean_abs <= 1e-3
    assert not found.global_context
    assert found.stride_confirmed


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_stride_is_confirmed(stride, images):
    found = measure_tiling(pooled(stride), images, tile=TILE, graph_strides=[1, stride])
    assert (found.stride_multiple, found.stride_confirmed, found.halo_px) == (stride, True, 0)


def test_stride_that_the_graph_hides_is_found(images):
    found = measure_tiling(pooled(8), images, tile=TILE, graph_strides=[1, 4])
    assert (found.stride_multiple, found.stride_confirmed) == (8, True)


def test_global_context(images):
    found = measure_tiling(global_mean, images, tile=TILE, graph_strides=[1])
    assert found.global_context
    assert found.receptive_field_px is None


@pytest.mark.parametrize("reach", [0, 4, 9, 100])
def test_halo_by_its_definition(reach):
    depth = _depths((32, 32))
    difference = np.where(depth < reach, 0.02, 0.0).astype(np.float32)[None]
    assert find_halo(difference, depth, cap=16) == (
        reach if reach <= 16 else 0
    )  # the same everywhere: no rim helps


@given(side=st.integers(16, 1024), halo=st.integers(0, 256), stride=st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_every_plan_fits_a_card(side, halo, stride):
    if stride > side // 4:
        return
    measured = Measurement(stride, True, min(halo, side // 4), 0.0, 0.0, None, False)
    tiling = plan_tiling(measured, (side, side))
    ModelCard(
        architecture="any",
        class_names=("a", "b"),
        class_colors=("#000000", "#ffffff"),
        spacing_um_px=0.5,
        patch_size_pixels=(side, side),
        input=InputSpec("image", "NHWC", "uint8", "RGB", (None, side, side, 3)),
        output=OutputSpec("probabilities", "NHWC", "softmax", 2),
        tiling=tiling,
        precision="fp32",
    )
    assert (side - tiling.overlap_px) % stride == 0


@pytest.mark.parametrize(
    ("name", "strides"),
    [("softmax", [1, 2, 4]), ("logits", [1, 2, 4]), ("sequential", [1, 2]), ("global", [1])],
)
def test_strides_are_read_off_the_graph(name, strides, export_one):
    assert read_strides(onnx.load(export_one(name).path), TILE) == strides


def test_exported_models_are_measured(export_one):
    unet, pooling = export_one("softmax"), export_one("global")
    assert unet.card.tiling.stride_multiple == 4
    assert unet.measured.stride_confirmed
    assert 1 <= unet.card.tiling.halo_px <= 16
    assert not unet.card.tiling.global_context
    assert pooling.card.tiling.global_context
    assert any("whole tile" in note for note in pooling.notes)
