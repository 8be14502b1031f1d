"""The probes, on functions whose tiling is known."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.card import InputSpec, ModelCard, OutputSpec
from histoseg_export.probe import Measurement, _depths, find_halo, measure_tiling, plan_tiling
from histoseg_export.strides import read_stride
from histoseg_export.tiles import open_source

TILE = (64, 64)


@pytest.fixture(scope="module")
def images():
    demo = open_source(None, TILE)[0][0]
    return np.stack([demo[place : place + 96, 2 * place : 2 * place + 96] for place in range(0, 160, 40)])


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
    found = measure_tiling(box(radius), images, tile=TILE, graph_stride=1)
    assert found.receptive_field_px == radius
    assert max(0, radius - 2) <= found.halo_px <= radius  # the outermost pixels weigh little
    assert found.residual_mean_abs <= 1e-3
    assert not found.global_context
    assert found.stride_confirmed


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_stride_is_confirmed(stride, images):
    found = measure_tiling(pooled(stride), images, tile=TILE, graph_stride=stride)
    assert (found.stride_multiple, found.stride_confirmed, found.halo_px) == (stride, True, 0)


def test_stride_that_the_graph_hides_is_found(images):
    found = measure_tiling(pooled(8), images, tile=TILE, graph_stride=4)
    assert (found.stride_multiple, found.stride_confirmed) == (8, True)


def test_global_context(images):
    found = measure_tiling(global_mean, images, tile=TILE, graph_stride=1)
    assert found.global_context
    assert found.receptive_field_px is None


@pytest.mark.parametrize("reach", [0, 4, 9, 100])
def test_halo_by_its_definition(reach):
    depth = _depths((32, 32))
    difference = np.where(depth < reach, 0.02, 0.0).astype(np.float32)[None]
    assert find_halo(difference, depth, cap=16) == (
        reach if reach <= 16 else 0
    )  # the same everywhere: no rim helps


def decaying(length, strength, floor=0.0, side=48):
    """Give `|dp|` that falls to a tenth every `length` pixels, above a floor that no rim removes."""
    depth = _depths((side, side))
    return (floor + strength * 10.0 ** (-depth / length)).astype(np.float32)[None], depth


@given(length=st.integers(2, 9), strength=st.floats(0.02, 1), scale=st.floats(1, 50))
def test_halo_does_not_depend_on_how_much_the_images_show(length, strength, scale):
    difference, depth = decaying(length, strength)
    halo = find_halo(difference, depth, cap=24)
    assert abs(halo - find_halo(difference * np.float32(scale), depth, cap=24)) <= 1
    assert 0 < halo <= 2 * length + 2


@given(length=st.integers(2, 9), floor=st.floats(0, 0.01))
def test_halo_ignores_what_no_rim_removes(length, floor):
    with_floor, depth = decaying(length, 0.2, floor)
    without, _ = decaying(length, 0.2)
    assert abs(find_halo(with_floor, depth, cap=24) - find_halo(without, depth, cap=24)) <= 1


def test_the_worse_of_two_groups_counts():
    (short, depth), (long, _) = decaying(2, 0.1), decaying(8, 0.1)
    both = np.concatenate([short, long, short, long])
    assert find_halo(both, depth, cap=24) == find_halo(long, depth, cap=24) > find_halo(short, depth, cap=24)


def test_harmless_rims_need_no_halo():
    difference, depth = decaying(8, 5e-5)
    assert find_halo(difference, depth, cap=24) == 0


def test_a_network_that_shows_nothing_shows_no_reach(images):
    def blind(tiles):
        return two_classes(np.ones(tiles.shape[:3]))

    assert measure_tiling(blind, images, tile=TILE, graph_stride=1).receptive_field_px is None


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
    ("name", "stride"), [("softmax", 4), ("logits", 4), ("sequential", 2), ("global", 1)]
)
def test_stride_is_read_off_the_graph(name, stride, export_one):
    assert read_stride(onnx.load(export_one(name).target)) == stride


def test_exported_models_are_measured(export_one):
    unet, pooling = export_one("softmax"), export_one("global")
    assert unet.card.tiling.stride_multiple == 4
    assert unet.measured.stride_confirmed
    assert 1 <= unet.card.tiling.halo_px <= 16
    assert not unet.card.tiling.global_context
    assert pooling.card.tiling.global_context
    assert any("whole tile" in note for note in pooling.notes)
