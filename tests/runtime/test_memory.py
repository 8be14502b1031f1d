from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.engine import Plan
from histoseg.errors import OptionError
from histoseg.grid import plan_grid
from histoseg.memory import MIB, OUTPUT_ROWS, fit_panels, parse_bytes, read_resident_bytes
from histoseg.slide import ArraySlide, Scale, plan_scale


def plan_wide(width: int) -> tuple[Plan, Scale]:
    grid = plan_grid((width, 1000), (64, 64), overlap=32, halo=3, stride_multiple=1)
    slide = ArraySlide(np.zeros((1, 1, 3), np.uint8), 0.5)
    scale = dataclasses.replace(plan_scale(slide, 0.5, tolerance=0.05), m_size=(width, 1000))
    return Plan(grid, np.ones((grid.y.count, grid.x.count), bool), "cosine", 2, 2), scale


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GiB", 1 << 30), ("1g", 1 << 30), ("1.5 GB", 3 << 29), ("512M", 512 << 20), ("64k", 64 << 10),
     ("800000000", 800_000_000), ("12b", 12)],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1G", "1 gallon", "0", "0.0M", "G", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size, expected a number of bytes"):
        parse_bytes(text)


@given(st.integers(1, 1 << 50))
def test_bytes_come_back_as_written(size: int) -> None:
    assert parse_bytes(str(size)) == size


def test_resident_memory_follows_what_is_held() -> None:
    before = read_resident_bytes()
    block = np.ones(200 * MIB, np.uint8)
    assert read_resident_bytes() - before > 150 * MIB
    del block


def test_more_memory_never_gives_narrower_panels(open_model) -> None:
    plan, scale = plan_wide(2_000_000)
    session = open_model("conv")
    start = read_resident_bytes() + OUTPUT_ROWS * plan.grid.x.length
    columns = [
        fit_panels(plan, session, scale, max_bytes=start + more * MIB) for more in (200, 300, 1000, 100_000)
    ]
    assert columns == sorted(columns)
    assert 1 <= columns[0] < columns[-1] == plan.grid.x.count


def test_too_little_memory_is_refused_with_what_is_needed(open_model) -> None:
    plan, scale = plan_wide(1000)
    with pytest.raises(OptionError, match=r"--max-memory is 10 MiB, expected at least \d+ MiB") as refusal:
        fit_panels(plan, open_model("conv"), scale, max_bytes=10 * MIB)
    least = int(str(refusal.value).split("at least ")[1].split(" MiB")[0])
    # what the message asks for is enough, but for what the process itself may gain meanwhile
    assert fit_panels(plan, open_model("conv"), scale, max_bytes=(least + 32) * MIB) >= 1
