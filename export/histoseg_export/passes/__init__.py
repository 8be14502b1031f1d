"""Graph transformations, one to a file: each takes a `Graph`, changes it in place, and returns how often."""

from histoseg_export.passes.fold_affine import fold_affine
from histoseg_export.passes.fold_pad import fold_pad
from histoseg_export.passes.fold_scale import fold_scale
from histoseg_export.passes.hoist_transpose import hoist_transpose
from histoseg_export.passes.lower_pool_indices import lower_pool_indices
from histoseg_export.passes.lower_softmax import lower_softmax
from histoseg_export.passes.plain_resize import plain_resize
from histoseg_export.passes.sink_transpose import sink_transpose
from histoseg_export.passes.spell_out import spell_out

PASSES = (
    lower_pool_indices,
    sink_transpose,
    hoist_transpose,
    fold_pad,
    fold_affine,
    fold_scale,
    lower_softmax,
    plain_resize,
)

__all__ = [
    "PASSES", "fold_affine", "fold_pad", "fold_scale", "hoist_transpose", "lower_pool_indices",
    "lower_softmax", "plain_resize", "sink_transpose", "spell_out",
]  # fmt: skip
