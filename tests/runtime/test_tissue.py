from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.demo import draw_slide
from histoseg.grid import plan_grid
from histoseg.slide import ArraySlide, open_slide
from histoseg.tissue import TissueMask, detect_tissue, find_tissue


def glass(height: int, width: int, *, deviation: float = 0) -> np.ndarray:
    rng = np.random.default_rng(1)
    values = np.array([244, 243, 246]) + rng.normal(0, deviation, (height, width, 1))
    return values.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("deviation", [0, 1.5])
def test_clean_glass_holds_no_tissue(deviation: float) -> None:
    assert not detect_tissue(glass(600, 800, deviation=deviation)).any()


@pytest.mark.parametrize("color", [(200, 130, 180), (235, 215, 228), (120, 90, 160), (20, 20, 20)])
def test_a_stained_disk_is_found_with_a_margin(color: tuple[int, int, int]) -> None:
    overview = glass(900, 900, deviation=1)
    y, x = np.mgrid[:900, :900]
    disk = np.hypot(x - 450, y - 450) < 120
    overview[disk] = color
    mask = detect_tissue(overview)
    assert mask[disk].all()
    assert mask.sum() > disk.sum()  # the margin
    assert not mask[np.hypot(x - 450, y - 450) > 150].any()


def test_specks_of_dust_do_not_count() -> None:
    overview = glass(1200, 1200)
    overview[600, 600] = overview[40, 900] = (10, 10, 10)
    assert not detect_tissue(overview).any()


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(3))))
def test_any_tiny_overview_gives_a_mask_of_its_size(overview: np.ndarray) -> None:
    mask = detect_tissue(overview)
    assert mask.shape == overview.shape[:2]
    assert mask.dtype == bool


def test_no_drawn_nucleus_is_lost() -> None:
    rgb, truth = draw_slide(800, seed=11)
    tissue = find_tissue(ArraySlide(rgb, 0.5))
    assert tissue.mask.shape == truth.shape
    assert tissue.mask[truth > 0].all()
    assert 0.4 < tissue.coverage < 0.98


def test_a_real_slide_is_mostly_tissue_and_not_all(real_svs: Path) -> None:
    with open_slide(real_svs) as slide:
        tissue = find_tissue(slide)
    assert 0.3 < tissue.coverage < 0.99
    height, width = tissue.mask.shape
    assert height / width == pytest.approx(2967 / 2220, rel=0.01)


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    hnp.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))),
)
def test_a_tile_runs_when_its_write_region_overlaps_tissue(
    m_width: int, m_height: int, mask: np.ndarray
) -> None:
    grid = plan_grid((m_width, m_height), (32, 32), overlap=8, halo=2, stride_multiple=2)
    tissue = TissueMask(mask)
    height, width = mask.shape
    rows, columns = np.arange(m_height) * height // m_height, np.arange(m_width) * width // m_width
    on_slide = mask[rows][:, columns]  # the mask, enlarged to model pixels
    for tile in grid.iter_tiles():
        x0, y0, x1, y1 = tile.m_write
        if on_slide[y0:y1, x0:x1].any():
            assert tissue.touches(tile, grid)
    if not mask.any():
        assert not any(tissue.touches(tile, grid) for tile in grid.iter_tiles())
    assert tissue.coverage == pytest.approx(mask.mean())
