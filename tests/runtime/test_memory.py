from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.engine import Plan
from histoseg.errors import OptionError
from histoseg.grid import plan_grid
from histoseg.maskrows import Footprint
from histoseg.memory import MIB, OUTPUT_ROWS, fit_panels, parse_bytes, read_resident_bytes
from histoseg.session import Session, open_session
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


@pytest.fixture(scope="module")
def known_session(models: Path) -> Iterator[Session]:
    """A session whose floor counts as 100 MiB."""
    with open_session(models / "conv.onnx", provider="cpu", threads=1) as session:
        session.resident_bytes[(2, 64, 64, 3)] = 100 * MIB
        yield session


@pytest.fixture
def session(models: Path) -> Iterator[Session]:
    """A session that nobody has measured."""
    with open_session(models / "conv.onnx", provider="cpu", threads=1) as session:
        yield session


def test_more_memory_never_gives_narrower_panels(session: Session) -> None:
    plan, scale = plan_wide(2_000_000)
    start = read_resident_bytes() + OUTPUT_ROWS * plan.grid.x.length
    columns = [
        fit_panels(plan, session, scale, max_bytes=start + more * MIB) for more in (200, 300, 1000, 100_000)
    ]
    assert columns == sorted(columns)
    assert 1 <= columns[0] < columns[-1] == plan.grid.x.count


def test_too_little_memory_is_refused_with_what_is_needed(session: Session) -> None:
    plan, scale = plan_wide(1000)
    with pytest.raises(OptionError, match=r"--max-memory is 10 MiB, expected at least \d+ MiB") as refusal:
        fit_panels(plan, session, scale, max_bytes=10 * MIB)
    least = int(str(refusal.value).split("at least ")[1].split(" MiB")[0])
    assert fit_panels(plan, session, scale, max_bytes=least * MIB) >= 1
    with pytest.raises(OptionError, match=f"expected at least {least} MiB"):
        fit_panels(plan, session, scale, max_bytes=(least - 1) * MIB)


def test_the_verdict_does_not_depend_on_what_slides_before_have_left(session: Session) -> None:
    """Their heap, arenas and caches stay with the process, and serve again."""
    plan, scale = plan_wide(2_000_000)
    limit = read_resident_bytes() + OUTPUT_ROWS * plan.grid.x.length + 600 * MIB
    first = fit_panels(plan, session, scale, max_bytes=limit)
    left = np.ones(250 * MIB, np.uint8)
    assert fit_panels(plan, session, scale, max_bytes=limit) == first
    del left
    assert 1 <= first < plan.grid.x.count


def test_a_larger_batch_is_measured_anew(session: Session) -> None:
    plan, scale = plan_wide(1000)
    for batch in (2, 4, 2):
        fit_panels(dataclasses.replace(plan, batch_size=batch), session, scale, max_bytes=1 << 50)
    assert list(session.resident_bytes) == [(2, 64, 64, 3), (4, 64, 64, 3)]


def test_a_mask_that_was_loaded_before_the_floor_was_measured_counts_once(models: Path) -> None:
    plan, scale = plan_wide(2_000_000)
    limit = read_resident_bytes() + OUTPUT_ROWS * plan.grid.x.length + 600 * MIB
    columns, mask = [], None
    for size in (0, 200 * MIB):
        mask = np.ones(size, np.uint8)
        with open_session(models / "conv.onnx", provider="cpu", threads=1) as session:
            masks = [Footprint(mask.nbytes)]
            columns.append(fit_panels(plan, session, scale, max_bytes=limit + size, masks=masks))
    # within what a process holds more or less from one moment to the next
    assert columns[0] == pytest.approx(columns[1], abs=40 * MIB / (plan.grid.x.step * 100))


@given(
    loaded=st.integers(0, 200 * MIB),
    reading=st.integers(0, 200 * MIB),
    per_column=st.integers(0, 4096),
    count=st.sampled_from([1, 2]),
)
def test_masks_narrow_panels_by_what_they_take(
    known_session: Session, loaded: int, reading: int, per_column: int, count: int
) -> None:
    (plan, scale), masks = plan_wide(2_000_000), [Footprint(loaded, reading, per_column)] * count
    without = 600 * MIB + OUTPUT_ROWS * plan.grid.x.length
    alone = fit_panels(plan, known_session, scale, max_bytes=without)
    limit = without + count * (loaded + reading)
    columns = fit_panels(plan, known_session, scale, max_bytes=limit, masks=masks)
    assert 1 <= columns < alone
    # what the masks' columns take was taken from those of the panel
    taken = count * columns * plan.grid.x.step * (plan.grid.y.step + per_column)
    freed = (alone - columns) * plan.grid.x.step * 2 * (plan.grid.y.step + plan.grid.y.fade * 3 * 4)
    assert taken <= freed
    assert fit_panels(plan, known_session, scale, max_bytes=limit, masks=[*masks, Footprint()]) < columns
