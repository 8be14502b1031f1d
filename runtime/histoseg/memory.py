"""Keeps a run below a given memory: how many columns of tiles fit into one panel.

What a model needs is measured, not guessed: two batches run first, and the process's resident memory then is
the floor. It is measured once for a session: later it would hold what allocators keep of the slides before,
and serve to the next one. What the pipeline, the blender, the outputs, the truth and the region of interest
add is counted from their array sizes.
"""

from __future__ import annotations

import ctypes
import math
import re
import sys
from collections.abc import Sequence

import numpy as np

from histoseg.engine import BATCHES_AHEAD, Plan
from histoseg.errors import OptionError
from histoseg.maskrows import Footprint
from histoseg.session import Session
from histoseg.slide import Scale

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
MIB = 1 << 20
# What allocators keep beyond the arrays that are counted here, and the picture drawn at the end.
SLACK_BYTES = 64 * MIB
PICTURE_BYTES = 96 * MIB
# Rows over the slide's whole width that the outputs hold: blocks of the label pyramid with their copies.
OUTPUT_ROWS = 5 * 256
# A reader holds a region as RGBA and as RGB; a fractional scale makes it float32, and squeezes it twice.
BYTES_PER_READ_PX, BYTES_PER_FRACTIONAL_PX = 10, 30
# A tile that is scored: probabilities as steps, and copies of what lies inside.
BYTES_PER_SCORED_PX = 32


def parse_bytes(text: str) -> int:
    """Return the bytes that a size such as `1GiB`, `512M` or `800000000` stands for (units of 1024).

    Raises:
        ValueError: It is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ValueError(f"'{text}' is no size, expected a number of bytes, or one with a unit, such as 1GiB")
    return int(float(match[1]) * UNITS[match[2].lower()])


def read_resident_bytes() -> int:
    """Return the memory this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def trim_heap() -> None:
    """Give memory that was freed back to the system, where the C library is one that keeps it and can."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def measure_floor(session: Session, batch_shape: tuple[int, ...], *, loaded_bytes: int = 0) -> int:
    """Return the memory that the process holds once a model has run, measured the first time only.

    Args:
        session: The model; it runs two batches.
        batch_shape: `(batch, height, width, 3)`.
        loaded_bytes: What of it belongs to this slide's masks, and is counted elsewhere.

    Raises:
        ModelError: The model failed.
    """
    trim_heap()  # of what loading the model, or the slide before, has left
    if batch_shape not in session.resident_bytes:
        for _ in range(2):  # the second takes a little more than the first
            session.run(np.zeros(batch_shape, np.uint8))
        session.resident_bytes[batch_shape] = read_resident_bytes() - loaded_bytes
    return session.resident_bytes[batch_shape]


def fit_panels(
    plan: Plan,
    session: Session,
    scale: Scale,
    *,
    max_bytes: int,
    masks: Sequence[Footprint] = (),
    probabilities: bool = False,
) -> int:
    """Return how many columns of tiles a panel may have, at least 1, so that a run stays below `max_bytes`.

    Args:
        plan: What will run.
        session: The model, whose own memory is measured; see `measure_floor`.
        scale: How model pixels lie on the slide.
        max_bytes: What the process may hold.
        masks: What the truth and the region of interest take.
        probabilities: Whether they are written, a byte for each pixel and class.

    Raises:
        OptionError: Not even panels of one column fit.
        ModelError: The model failed.
    """
    width, height = plan.grid.tile_size
    loaded = sum(mask.loaded_bytes for mask in masks)
    fixed = measure_floor(session, (plan.batch_size, height, width, 3), loaded_bytes=loaded)
    fixed += SLACK_BYTES + max(_count_pipeline(plan, session, scale), PICTURE_BYTES)
    written = 1 + (len(session.card.class_names) if probabilities else 0)
    fixed += OUTPUT_ROWS * plan.grid.x.length * written + sum(_count_mask(plan, mask) for mask in masks)
    per_column = _count_column(plan, len(session.card.class_names), written, masks)
    columns = (max_bytes - fixed) // per_column
    if columns < 1:
        least = math.ceil((fixed + per_column) / MIB)
        raise OptionError(
            f"--max-memory is {max_bytes // MIB} MiB, expected at least {least} MiB for this model, slide "
            "and batch"
        )
    return min(int(columns), plan.grid.x.count)


def _count_pipeline(plan: Plan, session: Session, scale: Scale) -> int:
    """Return the bytes of tiles that are read, run and blended at one time."""
    tile_px = math.prod(plan.grid.tile_size)
    level_px = tile_px * math.prod(scale.level_per_m)
    whole = all(span.is_integer() for span in scale.level_per_m)
    reading = plan.readers * level_px * (BYTES_PER_READ_PX if whole else BYTES_PER_FRACTIONAL_PX)
    waiting = (plan.readers + plan.batch_size) * tile_px * 3
    channels = len(session.card.class_names)
    running = (BATCHES_AHEAD + 1) * plan.batch_size * tile_px * (3 + 4 * channels)
    blending = tile_px * (4 * channels + 12)
    return int(reading + waiting + running + blending)


def _count_mask(plan: Plan, mask: Footprint) -> int:
    """Return the bytes of a mask whatever the panel; one is wider than its columns' steps by up to a tile."""
    width, height = plan.grid.tile_size
    scored = width * height * BYTES_PER_SCORED_PX
    return mask.loaded_bytes + mask.reading_bytes + scored + width * (height + mask.column_bytes)


def _count_column(plan: Plan, channels: int, written: int, masks: Sequence[Footprint]) -> int:
    """Return the bytes that each column of tiles adds to a panel: its share of a row of tiles.

    A band of labels, and of probabilities, is there twice while its parts are joined.
    """
    x, y = plan.grid.x, plan.grid.y
    masked = sum(y.step + mask.column_bytes for mask in masks)
    return x.step * (2 * y.fade * (channels + 1) * 4 + 2 * y.step * written + masked)
