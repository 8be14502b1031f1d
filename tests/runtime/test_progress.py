from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.engine import Plan, iter_rows
from histoseg.grid import plan_grid
from histoseg.progress import (
    EARLY_SECONDS,
    SPAN_SECONDS,
    STAGES,
    Pace,
    ProgressMeter,
    RunProgress,
    name_limit,
)
from histoseg.slide import ArraySlide, ScaledSlide, plan_scale
from histoseg.timing import Stopwatch

SECONDS = st.floats(0, 1e6)
BUSY = st.fixed_dictionaries(dict.fromkeys(STAGES, SECONDS))


def plan_tiles(width: int, height: int, *, overlap: int, readers: int = 2) -> Plan:
    grid = plan_grid((width, height), (64, 64), overlap=overlap, halo=4, stride_multiple=4)
    return Plan(grid, np.ones((grid.y.count, grid.x.count), bool), "cosine", 3, readers)


# the stage that limits


@given(BUSY, st.integers(1, 16))
def test_no_thread_is_busier_than_that_of_the_stage_that_limits(busy: dict, readers: int) -> None:
    caller = busy["blend"] + busy["write"]
    threads = {"read": busy["read"] / readers, "infer": busy["infer"], "blend": caller, "write": caller}
    limit = name_limit(busy, readers)
    if limit is None:
        assert max(threads.values()) < EARLY_SECONDS
    else:
        assert threads[limit] == max(threads.values()) >= EARLY_SECONDS
        if limit in ("blend", "write"):
            assert busy[limit] == max(busy["blend"], busy["write"])


def test_many_readers_share_what_one_cannot_do() -> None:
    busy = {"read": 30.0, "infer": 10.0, "blend": 6.0, "write": 5.0}
    assert name_limit(busy, 1) == "read"
    assert name_limit(busy, 4) == "blend"  # neither blending nor writing alone takes as long as the model
    assert name_limit({**busy, "write": 0.0}, 4) == "infer"


# what is measured


@given(st.integers(1, 700), st.integers(1, 700), st.integers(8, 40), st.floats(0.1, 4), st.floats(0.1, 4))
def test_area_grows_by_the_step_and_never_past_the_slide(
    width: int, height: int, overlap: int, x_um: float, y_um: float
) -> None:
    plan = plan_tiles(width, height, overlap=overlap)
    meter = ProgressMeter(plan, (x_um, y_um), Stopwatch())
    areas = [meter.measure(done, plan.run_count).mm2 for done in range(plan.run_count + 1)]
    slide = width * height * x_um * y_um / 1e6
    tile = plan.grid.x.step * plan.grid.y.step * x_um * y_um / 1e6
    assert areas[0] == 0
    assert max(areas) <= slide * (1 + 1e-12)
    for before, after in pairwise(areas):
        assert after - before == pytest.approx(min(tile, slide - before))


def test_a_run_is_measured_from_its_first_tile_to_its_last(open_model: Callable) -> None:
    rgb = np.full((300, 400, 3), 200, np.uint8)
    slide = ScaledSlide(ArraySlide(rgb, 0.5), plan_scale(ArraySlide(rgb, 0.5), 0.5, tolerance=0.05))
    plan, clock = plan_tiles(400, 300, overlap=16), Stopwatch()
    meter, seen = ProgressMeter(plan, (0.5, 0.5), clock), list[RunProgress]()

    def note(done: int, known: int) -> None:
        seen.append(meter.measure(done, known))

    for parts in iter_rows(slide, open_model("threshold"), plan, clock=clock, on_tiles=note):
        list(parts)
    assert (seen[0].done, seen[-1].done) == (0, plan.run_count)
    assert {progress.known for progress in seen} == {plan.run_count}
    assert seen[-1].mm2 == pytest.approx(400 * 300 * 0.25 / 1e6)
    for before, after in pairwise(seen):
        assert (before.done, before.seconds, before.mm2) < (after.done, after.seconds, after.mm2)


# pace


def progress_at(seconds: float, done: int, known: int = 10_000) -> RunProgress:
    return RunProgress(done, known, seconds, done * 0.01, None)


def follow(steps: list[RunProgress]) -> Pace:
    pace = Pace.begin(steps[0])
    for step in steps[1:]:
        pace = pace.follow(step)
    return pace


def test_one_word_of_a_run_tells_no_pace() -> None:
    pace = Pace.begin(progress_at(3.0, 12))
    assert (pace.tiles_per_second, pace.mm2_per_second, pace.seconds_left) == (None, None, None)


@given(st.integers(1, 50), st.floats(0.01, 40), st.integers(1, 100))
def test_a_steady_run_has_its_pace(tiles: int, seconds: float, count: int) -> None:
    steps = [progress_at(10 + i * seconds, i * tiles, known=10_000) for i in range(count + 1)]
    pace = follow(steps)
    assert pace.tiles_per_second == pytest.approx(tiles / seconds)
    assert pace.mm2_per_second == pytest.approx(0.01 * tiles / seconds)
    assert pace.seconds_left == pytest.approx((10_000 - count * tiles) * seconds / tiles)


@given(st.integers(1, 30), st.integers(1, 30))
def test_what_is_two_spans_ago_counts_no_more(slow: int, fast: int) -> None:
    early = [progress_at(float(i), i * slow) for i in range(200)]
    span = int(3 * SPAN_SECONDS)
    late = [progress_at(200.0 + i, 200 * slow + i * fast) for i in range(span)]
    assert follow(early + late).tiles_per_second == pytest.approx(fast)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), min_size=1, max_size=60))
def test_a_pace_is_of_the_last_two_spans_and_never_negative(steps: list[tuple[float, int]]) -> None:
    seconds, done = np.cumsum(np.array(steps), axis=0).T
    seen = [progress_at(float(s), int(d)) for s, d in zip(seconds, done, strict=True)]
    pace, gap = follow(seen), max(step for step, _ in steps)
    assert pace.now == seen[-1]
    assert 0 <= pace.now.seconds - pace.since.seconds <= 2 * (SPAN_SECONDS + gap) + 1e-6
    assert pace.seconds_left is None or pace.seconds_left >= 0


def test_a_run_that_begins_anew_has_a_new_pace() -> None:
    pace = follow([progress_at(0, 0), progress_at(10, 100), progress_at(0.5, 0), progress_at(1.5, 3)])
    assert pace.tiles_per_second == 3
