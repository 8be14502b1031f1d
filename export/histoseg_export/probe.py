"""Measure how a model's tiles must lie: nothing about its layers is assumed.

Definitions. `|dp|` is how much the probabilities of one pixel differ between two tiles that lie a quarter of
their side apart; its depth is its distance to the nearest border of either tile.

- `stride_multiple`: the input shifted by it gives the output shifted by it. It is read off the strides of the
  graph's operations, which no tile size hides, and confirmed by shifting.
- `halo_px`: the smallest depth from which on mean `|dp|` stays below a tenth of what it is at the rim (both
  over what is left in the middle of the tile, which no rim removes). It is judged over bands of 8 px (single
  rings may reach twice as much), in two groups of tiles, of which the worse counts.
- receptive-field radius: how far from a changed block any probability changes by more than 1e-7.
- `global_context`: changing all but a quarter of a tile changes that quarter's far corner by more than 1e-3
  on average, and by more than half of what it changes nearer by: distance hardly matters.

Why a share of the rim. How strong `|dp|` is depends on what the tiles show: at the rim 0.005 on drawn tissue,
0.09 on real tissue, for one U-Net. How fast it falls with depth does not: on seven sets of images, at 512 and
1024 px, a tenth is reached at 62 to 106 px (86 to 106 but for the two sets of the coarsest structures).
A limit that was absolute, 1e-3, gave 10 to 90 px for the same model. The quarter-side shift matters, too: the
middle of tiles that overlap by half is still near a border of one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from histoseg.blend import choose_labels
from histoseg.card import ModelCard, Tiling
from histoseg_train.tiling import fit_tiling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histoseg.arrays import Floats, Mask, Pixels

    Depths = NDArray[np.intp]
    Run = Callable[[Pixels], Floats]

MEAN_TOLERANCE = 1e-3
RIM_SHARE = 0.1
LEAST_ABS = 1e-4
"""Mean `|dp|` that no halo has to remove."""
BAND_PX = 8
FLATNESS = 0.5
EXACT_TOLERANCE = 1e-7
NOTEWORTHY_ABS = 5e-3
"""Mean `|dp|` in the middle of tiles from which on a person is told."""
NOTEWORTHY_WORK = 2.0
"""How often a pixel is computed from which on a person is told."""


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
    """`None` when it reaches the tile's border, or was not to be seen."""
    global_context: bool


@dataclass(frozen=True)
class _Probe:
    """A model, images, and what the model says of the tile in each image's top left corner."""

    run: Run
    images: Pixels
    tile: tuple[int, int]
    base: Floats
    threshold: float | None

    @property
    def tiles(self) -> Pixels:
        """Return the tiles that `base` is for."""
        return self.images[:, : self.tile[1], : self.tile[0]]

    def first(self, count: int) -> _Probe:
        """Return the same with fewer images."""
        return replace(self, images=self.images[:count], base=self.base[:count])


def measure_tiling(
    run: Run, images: Pixels, *, tile: tuple[int, int], graph_stride: int, threshold: float | None = None
) -> Measurement:
    """Probe a model.

    Args:
        run: Predicts `(n, height, width, 3)` uint8 tiles: `(n, height, width, classes)` probabilities.
        images: `(n, h, w, 3)` uint8, each one and a half tiles high and wide.
        tile: Width and height.
        graph_stride: What `read_stride` found.
        threshold: Of two classes, as in the card.
    """
    base = np.concatenate([run(image[None, : tile[1], : tile[0]]) for image in images])
    probe = _Probe(run, images, tile, base, threshold)
    difference, differing, depth = _compare_quarters(probe, graph_stride)
    halo = find_halo(difference, depth, min(tile) // 4)
    # what border and context do to the middle of a tile must not be taken for a wrong stride
    tolerance = max(MEAN_TOLERANCE, 1.5 * _typical(difference, depth >= min(tile) // 8))
    stride, confirmed = _confirm_stride(probe.first(2), graph_stride, tolerance)
    inside = depth >= min(halo, int(depth.max()))
    return Measurement(
        stride_multiple=stride,
        stride_confirmed=confirmed,
        halo_px=halo,
        residual_mean_abs=float(difference[:, inside].mean()),
        residual_labels=float(differing[:, inside].mean()),
        receptive_field_px=_measure_reach(probe.first(4), stride),
        global_context=_sees_far(probe.first(2)),
    )


def plan_tiling(measured: Measurement, tile: tuple[int, int]) -> Tiling:
    """Choose how tiles overlap by what was measured; see `fit_tiling`."""
    tiling = fit_tiling(min(tile), stride=measured.stride_multiple, halo=measured.halo_px)
    return replace(tiling, global_context=measured.global_context)


def explain_measurement(measured: Measurement, card: ModelCard) -> tuple[str, ...]:
    """Return what a person should know about how tiles of this model join, in sentences."""
    (width, height), tiling = card.patch_size_pixels, card.tiling
    notes = []
    if measured.global_context:
        notes.append(
            "the model looks at the whole tile: neighbouring tiles may disagree, whatever their overlap"
        )
    elif measured.residual_mean_abs > NOTEWORTHY_ABS or tiling.halo_px < measured.halo_px:
        notes.append(
            f"tiles of {width}x{height} px are small for this network: "
            f"in their middle {measured.residual_labels:.1%} of labels still depend on where the tile lies; "
            "a larger --tile lessens that"
        )
    work = width * height / ((width - tiling.overlap_px) * (height - tiling.overlap_px))
    if work > NOTEWORTHY_WORK:
        notes.append(
            f"tiles of {width}x{height} px overlap by {tiling.overlap_px}, so that each pixel is computed "
            f"{work:.1f} times; a larger --tile saves work"
        )
    if not measured.stride_confirmed:
        notes.append(
            f"stride multiple {measured.stride_multiple} is read off the graph; shifting did not confirm it"
        )
    return tuple(notes)


def _confirm_stride(probe: _Probe, expected: int, tolerance: float) -> tuple[int, bool]:
    """Return the smallest multiple of `expected` by which the output follows, and whether there is one."""
    for factor in (1, 2, 3, 4):
        stride = expected * factor
        if stride <= min(probe.tile) // 4 and _shift_error(probe, stride) <= tolerance:
            return stride, True
    return expected, False


def _shift_error(probe: _Probe, shift: int) -> float:
    """Return mean `|dp|` in the middle of two tiles that lie `shift` px apart on both axes."""
    first, second = _overlap(probe, (shift, shift))
    depth = _depths(first.shape[1:3])
    return float(np.abs(first - second)[:, depth >= depth.max() // 2].mean())


def _compare_quarters(probe: _Probe, stride: int) -> tuple[Floats, Mask, Depths]:
    """Return `|dp|`, where labels differ, and each pixel's depth, for tiles a quarter of their side apart."""
    first, second = _overlap(probe, tuple(_quarter(side, stride) for side in probe.tile))
    difference = np.abs(first - second).mean(axis=-1)
    labels, others = (choose_labels(values, probe.threshold) for values in (first, second))
    return difference, labels != others, _depths(difference.shape[1:])


def _quarter(side: int, stride: int) -> int:
    """Return a quarter of a side in whole strides; in pixels where a stride is most of the side."""
    return max(side // 4 // stride, 1) * stride if stride <= side // 2 else side // 4


def find_halo(difference: Floats, depth: Depths, cap: int) -> int:
    """Return the halo by its definition, at most `cap`.

    Args:
        difference: `|dp|`, `(n, height, width)`; images in turn belong to one of two groups.
        depth: `(height, width)`.
        cap: A quarter of the tile.
    """
    pixels = np.bincount(depth.ravel())
    groups = [difference[start::2].mean(axis=0) for start in range(min(2, len(difference)))]
    return max(_find_depth(np.bincount(depth.ravel(), group.ravel()) / pixels, cap) for group in groups)


def _find_depth(rings: NDArray[np.float64], cap: int) -> int:
    """Return where the mean `|dp|` of rings, outermost first, has fallen to a share of the rim's."""
    rim, middle = float(rings[:BAND_PX].mean()), float(rings[len(rings) * 2 // 3 :].mean())
    if rim - middle <= FLATNESS * middle:
        return 0  # much the same everywhere: no rim helps
    limit = max(LEAST_ABS, middle + RIM_SHARE * (rim - middle))
    for halo in range(min(cap, len(rings) - 1), -1, -1):
        if rings[halo : halo + BAND_PX].mean() > limit or rings[halo] > 2 * limit:
            return min(halo + 1, cap)
    return 0


def _typical(difference: Floats, where: Mask) -> float:
    """Return the median over images of the mean: rings are short, and one odd nucleus would decide."""
    return float(np.median(difference[:, where].mean(axis=1)))


def _overlap(probe: _Probe, shift: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Predict a second tile of each image and return what both say about the region they share."""
    (width, height), (right, down) = probe.tile, shift
    moved = [probe.run(image[None, down : down + height, right : right + width]) for image in probe.images]
    return probe.base[:, down:, right:], np.concatenate(moved)[:, : height - down, : width - right]


def _depths(size: tuple[int, ...]) -> Depths:
    """Return each pixel's distance to the nearest border of a region; 0 on the border."""
    height, width = size
    down, right = np.arange(height), np.arange(width)
    vertical = np.minimum(down, down[::-1])[:, None]
    return np.minimum(vertical, np.minimum(right, right[::-1])[None])


def _measure_reach(probe: _Probe, stride: int) -> int | None:
    """Return how far from a changed block in the middle the prediction changes; `None` if to the border.

    `None`, too, when it changes nowhere: a network that sees nothing in these images shows no reach.
    """
    width, height = probe.tile
    block = max(stride, 8)
    top, left = (side // 2 // block * block for side in (height, width))
    reach: int | None = None
    for image, before in zip(probe.tiles, probe.base, strict=True):
        changed = image.copy()
        changed[top : top + block, left : left + block] = (
            255 - changed[top : top + block, left : left + block]
        )
        moved = np.abs(probe.run(changed[None])[0] - before).max(axis=-1) > EXACT_TOLERANCE
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
        reach = max(reach or 0, *(int(side) for side in sides))
    return reach


def _sees_far(probe: _Probe) -> bool:
    """Tell whether most of a tile matters to its far corner, and hardly less there than halfway."""
    width, height = probe.tile
    down, right = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    place = np.maximum(down, right)  # 0 in the corner; all from 0.5 on is changed
    changed = np.where((place < 0.5)[..., None], probe.tiles, 255 - probe.tiles)
    difference = np.mean(
        [
            np.abs(probe.run(new[None])[0] - before).mean(axis=-1)
            for new, before in zip(changed, probe.base, strict=True)
        ],
        axis=0,
    )
    corner, halfway = (
        float(difference[(place >= a) & (place < b)].mean()) for a, b in ((0, 1 / 8), (1 / 4, 3 / 8))
    )
    return corner > MEAN_TOLERANCE and corner > FLATNESS * halfway
