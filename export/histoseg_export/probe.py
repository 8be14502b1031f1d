"""Measure how a model's tiles must lie: nothing about its layers is assumed.

Definitions. `|dp|` is how much the probabilities of one pixel differ between two tiles that overlap by half;
its depth is its distance to the nearest border of either tile.

- `stride_multiple`: the input shifted by it gives the output shifted by it. It is read off the resolutions
  inside the graph and confirmed by shifting.
- `halo_px`: the smallest depth from which on mean `|dp|` stays within 1e-3, or within twice what is left in
  the middle of the tile, whichever is more: a network that sees farther than the tile leaves something that
  no rim removes. It is judged in the median image over bands of 8 px; single rings may reach twice as much.
- receptive-field radius: how far from a changed block any probability changes by more than 1e-7.
- `global_context`: changing all but a quarter of a tile changes that quarter's far corner by more than 1e-3
  on average, and by more than half of what it changes nearer by: distance hardly matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import onnx

from histoseg.card import Tiling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Floats, Mask, Pixels

    Depths = NDArray[np.intp]
    Run = Callable[[Pixels], Floats]

MEAN_TOLERANCE = 1e-3
BAND_PX = 8
FLATNESS = 0.5
EXACT_TOLERANCE = 1e-7

_SPATIAL = frozenset(
    {"AveragePool", "Conv", "ConvTranspose", "MaxPool", "Resize", "SpaceToDepth", "DepthToSpace"}
)


@dataclass(frozen=True)
class Measurement:
    """What the probes found; sizes in model pixels."""

    stride_multiple: int
    stride_confirmed: bool
    """Whether a shift by it was seen to shift the output."""
    halo_px: int
    residual_mean_abs: float
    """Mean `|dp|` deeper than the halo."""
    residual_labels: float
    """Share of pixels deeper than the halo whose labels differ."""
    receptive_field_px: int | None
    """`None` when it reaches the tile's border."""
    global_context: bool


def measure_tiling(
    run: Run, images: Pixels, *, tile: tuple[int, int], graph_strides: list[int]
) -> Measurement:
    """Probe a model.

    Args:
        run: Predicts `(n, height, width, 3)` uint8 tiles: `(n, height, width, classes)` probabilities.
        images: `(n, h, w, 3)` uint8, each one and a half tiles high and wide.
        tile: Width and height.
        graph_strides: What `read_strides` found.
    """
    cap = min(tile) // 4
    difference, differing, depth = _compare_halves(run, images, tile, graph_strides[-1])
    halo = find_halo(difference, depth, cap)
    # what border and context do to the middle of a tile must not be taken for a wrong stride
    tolerance = max(MEAN_TOLERANCE, 1.5 * _typical(difference, depth >= cap // 2))
    stride, confirmed = _confirm_stride(run, images[:2], tile, graph_strides[-1], tolerance)
    inside = depth >= min(halo, int(depth.max()))
    return Measurement(
        stride_multiple=stride,
        stride_confirmed=confirmed,
        halo_px=halo,
        residual_mean_abs=float(difference[:, inside].mean()),
        residual_labels=float(differing[:, inside].mean()),
        receptive_field_px=_measure_reach(run, images[:2], tile, stride),
        global_context=_sees_far(run, images[:2], tile),
    )


def plan_tiling(measured: Measurement, tile: tuple[int, int]) -> Tiling:
    """Choose the overlap: two halos and a cross-fade of a 64th of the tile, at least 16 px.

    Beyond the halo neighbours agree, so that a wider cross-fade costs time and changes nothing.

    The step stays a multiple of the stride; a tile too small for all of it gives up the cross-fade first,
    then the halo.
    """
    side, stride = min(tile), measured.stride_multiple
    wanted = 2 * measured.halo_px + max(side // 64, 16)
    step = max((side - wanted) // stride, 1) * stride
    if side - step < 2 * measured.halo_px and stride > 1:
        step = max((side - 2 * measured.halo_px) // stride, 1) * stride
    overlap = max(side - step, 0)
    halo = min(measured.halo_px, overlap // 2)
    return Tiling(stride, halo, overlap, "cosine", measured.global_context)


def read_strides(model: onnx.ModelProto, tile: tuple[int, int]) -> list[int]:
    """Return by how much the graph's feature maps are smaller than the tile, finest first.

    Maps of fewer than four pixels hold context, not places, and do not count.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    strides = {1}
    for node in graph.node:
        dims = shapes.get(node.output[0])
        if node.op_type in _SPATIAL and dims is not None and len(dims) == 4:
            sides = zip(reversed(tile), (dims[2].dim_value, dims[3].dim_value), strict=True)
            strides.update(ceil(full / side) for full, side in sides if side >= 4)
    return sorted(strides)


def _confirm_stride(
    run: Run, images: Pixels, tile: tuple[int, int], expected: int, tolerance: float
) -> tuple[int, bool]:
    """Return the smallest multiple of `expected` by which the output follows, and whether there is one."""
    for factor in (1, 2, 3, 4):
        stride = expected * factor
        if stride <= min(tile) // 4 and _shift_error(run, images, tile, stride) <= tolerance:
            return stride, True
    return expected, False


def _shift_error(run: Run, images: Pixels, tile: tuple[int, int], shift: int) -> float:
    """Return mean `|dp|` in the middle of two tiles that lie `shift` px apart on both axes."""
    first, second = _overlap(run, images, tile, (shift, shift))
    depth = _depths(first.shape[1:3])
    return float(np.abs(first - second)[:, depth >= depth.max() // 2].mean())


def _compare_halves(
    run: Run, images: Pixels, tile: tuple[int, int], stride: int
) -> tuple[Floats, Mask, Depths]:
    """Return `|dp|`, where labels differ, and the depth of each pixel, for tiles that overlap by half."""
    width, height = (max(side // 2 // stride, 1) * stride for side in tile)
    first, second = _overlap(run, images, tile, (width, height))
    difference = np.abs(first - second).mean(axis=-1)
    return difference, first.argmax(-1) != second.argmax(-1), _depths(difference.shape[1:])


def find_halo(difference: Floats, depth: Depths, cap: int) -> int:
    """Return the halo by its definition, at most `cap`.

    Args:
        difference: `|dp|`, `(n, height, width)`.
        depth: `(height, width)`.
        cap: A quarter of the tile.
    """
    limit = max(MEAN_TOLERANCE, 2 * _typical(difference, depth >= cap // 2))
    for halo in range(min(cap, int(depth.max())), -1, -1):
        band, ring = (depth >= halo) & (depth < halo + BAND_PX), depth == halo
        if _typical(difference, band) > limit or _typical(difference, ring) > 2 * limit:
            return min(halo + 1, cap)
    return 0


def _typical(difference: Floats, where: Mask) -> float:
    """Return the median over images of the mean: rings are short, and one odd nucleus would decide."""
    return float(np.median(difference[:, where].mean(axis=1)))


def _overlap(
    run: Run, images: Pixels, tile: tuple[int, int], shift: tuple[int, int]
) -> tuple[Floats, Floats]:
    """Predict two tiles of each image and return what both say about the region they share."""
    (width, height), (right, down) = tile, shift
    first, second = [], []
    for image in images:
        first.append(run(image[None, :height, :width])[0, down:, right:])
        moved = run(image[None, down : down + height, right : right + width])
        second.append(moved[0, : height - down, : width - right])
    return np.stack(first), np.stack(second)


def _depths(size: tuple[int, ...]) -> Depths:
    """Return each pixel's distance to the nearest border of a region; 0 on the border."""
    height, width = size
    down, right = np.arange(height), np.arange(width)
    vertical = np.minimum(down, down[::-1])[:, None]
    return np.minimum(vertical, np.minimum(right, right[::-1])[None])


def _measure_reach(run: Run, images: Pixels, tile: tuple[int, int], stride: int) -> int | None:
    """Return how far from a changed block in the middle the prediction changes."""
    width, height = tile
    block = max(stride, 8)
    top, left = (side // 2 // block * block for side in (height, width))
    reach = 0
    for image in images[:, :height, :width]:
        changed = image.copy()
        changed[top : top + block, left : left + block] = (
            255 - changed[top : top + block, left : left + block]
        )
        moved = np.abs(run(changed[None]) - run(image[None]))[0].max(axis=-1) > EXACT_TOLERANCE
        rows, columns = np.nonzero(moved)
        if not len(rows):
            continue
        sides = (
            top - rows.min(),
            rows.max() - top - block + 1,
            left - columns.min(),
            columns.max() - left - block + 1,
        )
        if rows.min() == 0 or columns.min() == 0 or rows.max() == height - 1 or columns.max() == width - 1:
            return None
        reach = max(reach, *(int(side) for side in sides))
    return reach


def _sees_far(run: Run, images: Pixels, tile: tuple[int, int]) -> bool:
    """Tell whether most of a tile matters to its far corner, and hardly less there than halfway."""
    width, height = tile
    down, right = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    place = np.maximum(down, right)  # 0 in the corner; all from 0.5 on is changed
    changed = np.where((place < 0.5)[..., None], images[:, :height, :width], 255 - images[:, :height, :width])
    pairs = zip(images[:, :height, :width], changed, strict=True)
    difference = np.mean(
        [np.abs(run(new[None]) - run(old[None]))[0].mean(axis=-1) for old, new in pairs], axis=0
    )
    corner, halfway = (
        float(difference[(place >= a) & (place < b)].mean()) for a, b in ((0, 1 / 8), (1 / 4, 3 / 8))
    )
    return corner > MEAN_TOLERANCE and corner > FLATNESS * halfway
