"""What a person may choose for a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from histoseg.card import Blend
from histoseg.errors import OptionError

if TYPE_CHECKING:
    from histoseg.session import Session

MPP_RANGE = (0.001, 1000.0)


@dataclass(frozen=True)
class RunOptions:
    """What a person may choose for a run; `None` means what the model's card says."""

    mpp: float | None = None
    """Level-0 um/px, over what the slide states."""
    allow_coarse: bool = False
    blend: Blend | None = None
    overlap_px: int | None = None
    threshold: float | None = None
    tissue: bool = True
    """Skip tiles without tissue. Of a live slide all tiles run: tissue is found on the whole of a slide."""
    batch_size: int | None = None
    readers: int | None = None
    max_memory: int | None = None
    """Bytes; where the slide's whole width needs more, it is run in panels."""
    probabilities: bool = False
    """Write `probabilities.tif`."""
    dicom_seg: bool = False
    """Write `segmentation.dcm`, of DICOM slides; needs `histoseg[dicom]`."""
    objects: bool = True
    """Write `objects.geojson.gz`."""
    min_area_um2: float = 0.0
    """Smaller objects are left out of it."""
    simplify: bool = True
    """Cut the corners of the objects' steps, by at most half a model pixel."""


def check_options(options: RunOptions, session: Session) -> None:
    """Refuse options that do not fit the model.

    Raises:
        OptionError: The message names the option as the command line does.
    """
    _check_values(options)
    tiling, side = session.card.tiling, min(session.card.patch_size_pixels)
    least, most = 2 * tiling.halo_px, side - tiling.stride_multiple
    if options.overlap_px is not None and not least <= options.overlap_px <= most:
        raise OptionError(
            f"--overlap is {options.overlap_px} px, expected {least} (twice the model's halo) to {most}"
        )
    if options.batch_size and session.batch_size not in (None, options.batch_size):
        raise OptionError(f"--batch is {options.batch_size}, expected {session.batch_size}, the model's own")
    if options.threshold is not None and len(session.card.class_names) != 2:
        raise OptionError(
            f"--threshold is for two classes, but the model has {len(session.card.class_names)} classes"
        )


def _check_values(options: RunOptions) -> None:
    """Refuse what fits no model."""
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise OptionError(f"--threshold is {options.threshold}, expected between 0 and 1")
    if options.mpp is not None and not MPP_RANGE[0] <= options.mpp <= MPP_RANGE[1]:
        raise OptionError(f"--mpp is {options.mpp:g}, expected {MPP_RANGE[0]:g} to {MPP_RANGE[1]:g} um/px")
    if options.blend is not None and options.blend not in get_args(Blend):
        raise OptionError(f"--blend is '{options.blend}', expected one of {', '.join(get_args(Blend))}")
    if not 0 <= options.min_area_um2 < math.inf:
        raise OptionError(f"--min-area-um2 is {options.min_area_um2:g}, expected 0 or more")
    for flag, value in (("--batch", options.batch_size), ("readers", options.readers)):
        if value is not None and value < 1:
            raise OptionError(f"{flag} is {value}, expected 1 or more")
