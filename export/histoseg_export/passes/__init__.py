"""Graph transformations, one to a file: each takes a `Graph`, changes it in place, and returns how often."""

from histoseg_export.passes.fold_affine import fold_affine
from histoseg_export.passes.fold_scale import fold_scale
from histoseg_export.passes.hoist_transpose import hoist_transpose
from histoseg_export.passes.lower_softmax import lower_softmax

PASSES = (hoist_transpose, fold_affine, fold_scale, lower_softmax)

__all__ = ["PASSES", "fold_affine", "fold_scale", "hoist_transpose", "lower_softmax"]
