"""What a person may choose for a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from histoseg.errors import OptionError

if TYPE_CHECKING:
    from histoseg.card import Blend
    from histoseg.session import Session


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
    """Skip tiles without tissue."""
    batch_size: int | None = None
    readers: int | None = None
    max_memory: int | None = None
    """Bytes; where the slide's whole width needs more, it is run in panels."""


def check_options(options: RunOptions, session: Session) -> None:
    """Refuse options that do not fit the model.

    Raises:
        OptionError: The message names the option as the command line does.
    """
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
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise OptionError(f"--threshold is {options.threshold}, expected between 0 and 1")
    if options.mpp is not None and not 0 < options.mpp < math.inf:
        raise OptionError(f"--mpp is {options.mpp}, expected um/px above 0")
