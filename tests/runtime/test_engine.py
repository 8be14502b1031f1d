from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.blend import label_band
from histoseg.engine import Plan, choose_batch_size, iter_bands, iter_rows, map_ordered
from histoseg.errors import CancelledError, ModelError, SlideError
from histoseg.grid import Grid, plan_grid
from histoseg.session import Session
from histoseg.slide import ArraySlide, ScaledSlide, open_slide, plan_scale
from histoseg.timing import Stopwatch


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scaled_array(rgb: np.ndarray) -> ScaledSlide:
    slide = ArraySlide(rgb, 0.5)
    return ScaledSlide(slide, plan_scale(slide, 0.5, tolerance=0.05))


def plan_all(
    slide: ScaledSlide, session: Session, *, blend="crop", tile=64, more=16, batch=3, readers=2
) -> Plan:
    """Plan a run of every tile; `more` is the overlap beyond the halos."""
    tiling = session.card.tiling
    grid = plan_grid(
        slide.m_size,
        (tile, tile),
        overlap=2 * tiling.halo_px + more,
        halo=tiling.halo_px,
        stride_multiple=tiling.stride_multiple,
        crop=blend == "crop",
    )
    return Plan(grid, every_tile(grid), blend, batch, readers)


def every_tile(grid: Grid) -> np.ndarray:
    return np.ones((grid.y.count, grid.x.count), bool)


def some_tiles(plan: Plan, every: int) -> Plan:
    runs = np.zeros(plan.runs.size, bool)
    runs[1::every] = True
    return dataclasses.replace(plan, runs=runs.reshape(plan.runs.shape))


def run_tiled(slide: ScaledSlide, session: Session, plan: Plan) -> np.ndarray:
    return np.concatenate([band.probabilities for band in iter_bands(slide, session, plan)])


def run_whole(slide: ScaledSlide, session: Session, grid: Grid) -> np.ndarray:
    """Run the model once over the whole slide, reflected at its borders as far as the tiles are."""
    width, height = slide.m_size
    lead, stride = grid.x.lead, session.card.tiling.stride_multiple
    after = [lead + -(lead + side + lead) % stride for side in (height, width)]
    whole = slide.read(0, 0, width, height)
    padded = np.pad(whole, ((lead, after[0]), (lead, after[1]), (0, 0)), mode="reflect")
    return session.run(padded[None])[0, lead : lead + height, lead : lead + width]


def histoseg_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("histoseg-")]


@pytest.mark.parametrize("name", ["conv", "unet"])
@settings(max_examples=40)
@given(
    width=st.integers(1, 150),
    height=st.integers(1, 150),
    tile=st.sampled_from([32, 48, 64]),
    more=st.integers(0, 8),
    seed=st.integers(0, 100),
)
def test_crop_equals_one_run_over_the_whole_slide_bit_for_bit(
    open_model, name: str, width: int, height: int, tile: int, more: int, seed: int
) -> None:
    session, slide = open_model(name), scaled_array(noise(height, width, seed))
    plan = plan_all(slide, session, tile=tile, more=more)
    np.testing.assert_array_equal(run_tiled(slide, session, plan), run_whole(slide, session, plan.grid))


@pytest.mark.parametrize("name", ["conv", "unet"])
@settings(max_examples=25)
@given(
    width=st.integers(1, 150), height=st.integers(1, 150), more=st.integers(0, 40), seed=st.integers(0, 100)
)
def test_cosine_equals_one_run_over_the_whole_slide_within_rounding(
    open_model, name: str, width: int, height: int, more: int, seed: int
) -> None:
    session, slide = open_model(name), scaled_array(noise(height, width, seed))
    plan = plan_all(slide, session, blend="cosine", more=more)
    whole = run_whole(slide, session, plan.grid)
    np.testing.assert_allclose(run_tiled(slide, session, plan), whole, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def real_slide(real_svs: Path) -> Iterator[ScaledSlide]:
    with open_slide(real_svs) as file:
        yield ScaledSlide(file, plan_scale(file, 0.5, tolerance=0.05))


def test_crop_equals_the_whole_run_on_a_real_slide(open_model, real_slide: ScaledSlide) -> None:
    session = open_model("unet")
    plan = plan_all(real_slide, session, tile=512, more=0, batch=1)
    tiled = run_tiled(real_slide, session, plan)
    np.testing.assert_array_equal(tiled, run_whole(real_slide, session, plan.grid))


def test_cosine_equals_the_whole_run_on_a_real_slide_within_rounding(
    open_model, real_slide: ScaledSlide
) -> None:
    session = open_model("unet")
    plan = plan_all(real_slide, session, tile=512, more=128 - 10, batch=1, blend="cosine")
    tiled, whole = run_tiled(real_slide, session, plan), run_whole(real_slide, session, plan.grid)
    np.testing.assert_allclose(tiled, whole, atol=1e-5, rtol=0)


def test_moving_the_origin_of_a_real_slide_by_one_stride_multiple_changes_nothing(
    open_model, real_slide: ScaledSlide
) -> None:
    session, rgb = open_model("unet"), real_slide.read(700, 900, 901, 703)
    stride = session.card.tiling.stride_multiple
    slide, moved = scaled_array(rgb), scaled_array(np.ascontiguousarray(rgb[stride:, stride:]))
    plain, after = (
        run_tiled(one, session, plan_all(one, session, tile=256, batch=1)) for one in (slide, moved)
    )
    rim = session.card.tiling.halo_px + 1  # which mirrors other pixels
    np.testing.assert_array_equal(plain[stride:, stride:][rim:, rim:], after[rim:, rim:])


def test_too_small_a_halo_shows(open_model) -> None:
    """The exactness above is no accident of models without context."""
    session, slide = open_model("conv"), scaled_array(noise(150, 150))
    plan = plan_all(slide, session)
    grid = plan_grid(slide.m_size, (64, 64), overlap=0, halo=0, stride_multiple=1, crop=True)
    blind = Plan(grid, every_tile(grid), "crop", 3, 2)
    whole = run_whole(slide, session, plan.grid)
    assert np.abs(run_tiled(slide, session, blind) - whole).max() > 1e-3


@pytest.mark.parametrize("blend", ["cosine", "crop", "gaussian", "constant"])
def test_a_constant_model_stays_constant_whatever_runs(open_model, blend: str) -> None:
    session, slide = open_model("constant"), scaled_array(noise(150, 170))
    plan = plan_all(slide, session, blend=blend)
    some = some_tiles(plan, 3)
    for chosen in (plan, some):
        for band in iter_bands(slide, session, chosen):
            expected = np.broadcast_to(np.float32([0.2, 0.5, 0.3]), (int(band.covered.sum()), 3))
            np.testing.assert_array_equal(band.probabilities[band.covered], expected)
            assert band.covered.all() or chosen is some


@pytest.mark.parametrize("blend", ["cosine", "crop"])
@pytest.mark.parametrize("skip", [False, True])
def test_batch_size_and_readers_change_no_byte(open_model, blend: str, skip: bool) -> None:
    session, slide = open_model("unet"), scaled_array(noise(201, 167))
    plan = plan_all(slide, session, blend=blend)
    plan = some_tiles(plan, 2) if skip else plan
    results = [
        run_tiled(slide, session, dataclasses.replace(plan, batch_size=batch, readers=readers))
        for batch, readers in [(1, 1), (2, 3), (5, 8), (64, 2)]
    ]
    for other in results[1:]:
        assert other.tobytes() == results[0].tobytes()


@pytest.mark.parametrize("name", ["unet", "constant"])
@pytest.mark.parametrize("blend", ["cosine", "crop", "gaussian", "constant"])
@given(columns=st.integers(1, 6), more=st.integers(0, 40), every=st.integers(1, 3))
@settings(max_examples=10)
def test_panels_change_no_byte(
    open_model, name: str, blend: str, columns: int, more: int, every: int
) -> None:
    session, slide = open_model(name), scaled_array(noise(130, 301))
    plan = some_tiles(plan_all(slide, session, blend=blend, more=more), every)
    whole = np.zeros((130, 301, len(session.card.class_names)), np.float32)
    cut = np.full_like(whole, np.nan)
    for chosen, result in ((plan, whole), (dataclasses.replace(plan, panel_columns=columns), cut)):
        for parts in iter_rows(slide, session, chosen):
            for part in parts:
                rows, width = part.covered.shape
                result[part.m_y : part.m_y + rows, part.m_x : part.m_x + width] = part.probabilities
    assert cut.tobytes() == whole.tobytes()


@pytest.mark.parametrize("blend", ["cosine", "crop", "gaussian", "constant"])
@given(
    panel=st.sampled_from([None, 1, 2, 5]),
    more=st.integers(0, 40),
    every=st.integers(1, 3),
    share=st.floats(0, 1),
)
@settings(max_examples=10)
def test_bands_that_are_done_are_left_out_and_change_no_byte_of_the_others(
    open_model, blend: str, panel: int | None, more: int, every: int, share: float
) -> None:
    session, slide = open_model("unet"), scaled_array(noise(240, 130))
    plan = some_tiles(plan_all(slide, session, blend=blend, more=more), every)
    plan = dataclasses.replace(plan, panel_columns=panel)
    whole = list(iter_bands(slide, session, plan))
    done = round(share * len(whole))
    rest = list(iter_bands(slide, session, dataclasses.replace(plan, done=done)))
    assert [(band.m_x, band.m_y) for band in rest] == [(band.m_x, band.m_y) for band in whole[done:]]
    for band, expected in zip(rest, whole[done:], strict=True):
        assert band.probabilities.tobytes() == expected.probabilities.tobytes()
        assert band.covered.tobytes() == expected.covered.tobytes()


@given(st.integers(1, 200), st.integers(1, 200), st.data())
@settings(max_examples=25)
def test_bands_cover_every_row_once_and_skipped_tiles_become_background(
    open_model, width: int, height: int, data: st.DataObject
) -> None:
    session, slide = open_model("threshold"), scaled_array(np.zeros((height, width, 3), np.uint8))
    plan = plan_all(slide, session, blend="cosine", more=8, tile=32)
    plan = dataclasses.replace(plan, runs=data.draw(hnp.arrays(bool, plan.runs.shape)))
    bands = list(iter_bands(slide, session, plan))
    rows = 0
    for band in bands:
        assert band.m_y == rows
        rows += len(band.covered)
    assert rows == height
    labels = np.concatenate([label_band(band, background=0) for band in bands])
    expected = np.zeros((height, width), np.uint8)
    for tile in plan.iter_runs():
        x0, y0, x1, y1 = tile.m_write
        expected[y0:y1, x0:x1] = 1
    np.testing.assert_array_equal(labels, expected)


def test_moving_the_origin_by_one_stride_multiple_changes_nothing(open_model) -> None:
    session, rgb = open_model("unet"), noise(160, 160)
    shifted = scaled_array(np.ascontiguousarray(rgb[4:, 2:]))
    slide = scaled_array(rgb)
    plain = run_tiled(slide, session, plan_all(slide, session))[4:, 2:]
    moved = run_tiled(shifted, session, plan_all(shifted, session))
    np.testing.assert_array_equal(plain[6:, 6:], moved[6:, 6:])  # but for the rim that mirrors other pixels


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_progress_reaches_the_total(open_model, batch: int) -> None:
    session, slide = open_model("threshold"), scaled_array(noise(150, 170))
    plan = plan_all(slide, session, batch=batch)
    seen: list[tuple[int, int]] = []
    callers = set()

    def note(done: int, total: int) -> None:
        seen.append((done, total))
        callers.add(threading.current_thread())

    for _ in iter_bands(slide, session, plan, on_tiles=note):
        pass
    assert [total for _, total in seen] == [plan.run_count] * len(seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == plan.run_count
    assert callers == {threading.current_thread()}


def test_the_clock_counts_every_stage(open_model) -> None:
    session, slide, clock = open_model("conv"), scaled_array(noise(150, 170)), Stopwatch()
    for _ in iter_bands(slide, session, plan_all(slide, session), clock=clock):
        pass
    seconds = clock.report(("read", "infer", "blend", "write"))
    assert seconds["read"] > 0
    assert seconds["infer"] > 0
    assert seconds["blend"] > 0
    assert seconds["write"] == 0
    assert seconds["total"] >= seconds["infer"]


class DamagedSlide(ArraySlide):
    """A slide whose lower half cannot be read."""

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        if y + height > self.level_sizes[0][1] // 2:
            raise SlideError(f"{self.name}: damaged at row {y}")
        return super().read_level(level, x, y, width, height)


@pytest.mark.parametrize("readers", [1, 4])
def test_a_damaged_slide_stops_the_run_with_its_own_message(open_model, readers: int) -> None:
    slide = DamagedSlide(noise(600, 300), 0.5, "torn")
    scaled, session = ScaledSlide(slide, plan_scale(slide, 0.5, tolerance=0.05)), open_model("conv")
    plan = plan_all(scaled, session, readers=readers)
    with pytest.raises(SlideError, match="torn: damaged at row"):
        run_tiled(scaled, session, plan)
    assert histoseg_threads() == []


def test_a_failing_model_stops_the_run_with_its_own_message(open_model) -> None:
    session, slide = open_model("unet"), scaled_array(noise(400, 300))
    # tiles of odd size: the skip of the U-Net does not fit what comes back up
    grid = plan_grid(slide.m_size, (63, 63), overlap=10, halo=5, stride_multiple=1)
    with pytest.raises(ModelError, match="onnxruntime failed"):
        run_tiled(slide, session, Plan(grid, every_tile(grid), "cosine", 2, 2))
    assert histoseg_threads() == []


def test_a_failing_consumer_of_progress_stops_the_run(open_model) -> None:
    session, slide = open_model("conv"), scaled_array(noise(400, 300))

    def fail(done: int, total: int) -> None:
        raise RuntimeError("the window was closed")

    with pytest.raises(RuntimeError, match="the window was closed"):
        list(iter_bands(slide, session, plan_all(slide, session), on_tiles=fail))
    assert histoseg_threads() == []


@pytest.mark.parametrize("batch", [1, 4])
def test_a_run_is_cancelled_within_one_batch(open_model, batch: int) -> None:
    session, slide, cancel = open_model("conv"), scaled_array(noise(900, 300)), threading.Event()
    plan = plan_all(slide, session, batch=batch)
    seen = []

    def note(done: int, total: int) -> None:
        seen.append(done)
        if done >= 2 * batch:
            cancel.set()

    with pytest.raises(CancelledError, match=f"cancelled after {2 * batch} of {plan.run_count} tiles"):
        list(iter_bands(slide, session, plan, on_tiles=note, cancel=cancel))
    assert seen[-1] == 2 * batch
    assert histoseg_threads() == []


def test_tiles_that_do_not_run_are_cancelled_one_by_one(open_model) -> None:
    session, slide, cancel = open_model("conv"), scaled_array(noise(300, 300)), threading.Event()
    plan = plan_all(slide, session)
    plan = dataclasses.replace(plan, runs=np.zeros_like(plan.runs))
    with contextlib.closing(iter_rows(slide, session, plan, cancel=cancel)) as rows:
        parts = next(rows)
        next(parts)
        cancel.set()
        with pytest.raises(CancelledError, match="cancelled after 0 of 0 tiles"):
            next(parts)


def test_closing_the_iterator_early_stops_every_thread(open_model) -> None:
    session, slide = open_model("conv"), scaled_array(noise(3000, 300))
    reads = []
    original = slide.read

    class Counting(ScaledSlide):
        def read(self, *region: int) -> np.ndarray:
            reads.append(region)
            return original(*region)

    plan = plan_all(slide, session)
    bands = iter_bands(Counting(slide.slide, slide.scale), session, plan)
    assert next(bands).m_y == 0
    bands.close()
    assert histoseg_threads() == []
    assert 0 < len(reads) < plan.run_count // 2  # back-pressure: reading never ran far ahead


def test_batches_fill_a_fixed_number_of_pixels_or_the_models_own_size(open_model) -> None:
    assert choose_batch_size(open_model("nchw_float_logits"), (64, 64)) == 1
    sizes = [choose_batch_size(open_model("conv"), (side, side)) for side in (64, 256, 512, 4096)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


@given(st.lists(st.integers(), max_size=50), st.integers(1, 9), st.integers(1, 4))
def test_map_ordered_keeps_the_order(items: list[int], ahead: int, workers: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    taken = []

    def take():
        for item in items:
            taken.append(item)
            yield item

    with ThreadPoolExecutor(workers) as pool:
        results = map_ordered(pool, lambda item: item * 2, take(), ahead=ahead)
        for index, result in enumerate(results):
            assert result == items[index] * 2
            assert len(taken) <= index + 1 + ahead
