"""Graph transformations that let int8 kernels do the work: exact in float, applied before quantization."""

from histoseg_export.int8.fold_pixels import fold_pixels
from histoseg_export.int8.pad_channels import pad_channels

__all__ = ["fold_pixels", "pad_channels"]
