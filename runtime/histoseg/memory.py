"""Keeps a run below a given memory: how many columns of tiles fit into one panel.

What a model needs is measured, not guessed: two batches run first, and the process's resident memory then is
the floor. What the pipeline, the blender and the outputs add is counted from their array sizes.
"""

from __future__ import annotations

import math
import re

import numpy as np

from histoseg.engine import BATCHES_AHEAD, Plan
from histoseg.errors import OptionError
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


def fit_panels(plan: Plan, session: Session, scale: Scale, *, max_bytes: int) -> int:
    """Return how many columns of tiles a panel may have, at least 1, so that a run stays below `max_bytes`.

    Runs two batches, so that the model's own memory is there to be measured.

    Raises:
        OptionError: Not even panels of one column fit.
        ModelError: The model failed.
    """
    width, height = plan.grid.tile_size
    for _ in range(2):  # the second takes a little more than the first
        session.run(np.zeros((plan.batch_size, height, width, 3), np.uint8))
    fixed = read_resident_bytes() + SLACK_BYTES + max(_count_pipeline(plan, session, scale), PICTURE_BYTES)
    fixed += OUTPUT_ROWS * plan.grid.x.length
    per_column = _count_column(plan, len(session.card.class_names))
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


def _count_column(plan: Plan, channels: int) -> int:
    """Return the bytes that each column of tiles adds to a panel: cross-fade and labels of a row of tiles."""
    x, y = plan.grid.x, plan.grid.y
    return x.step * (2 * y.fade * (channels + 1) * 4 + 2 * y.step)
