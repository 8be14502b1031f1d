from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.demo import draw_slide
from histoseg.grid import plan_grid
from histoseg.slide import ArraySlide, open_slide, read_overview
from histoseg.tissue import TissueMask, detect_tissue, find_tissue

UM_PX = (12.0, 12.0)
PLAIN_GLASS = (244, 243, 246)
GLASSES = [PLAIN_GLASS, (228, 224, 231), (240, 233, 226), (232, 236, 240), (255, 255, 255), (205, 205, 205)]
# Inks are dyes: light passes the ink and what lies under it. These are their colours over white.
INKS = {
    "blue": (35, 65, 175),
    "light blue": (90, 140, 220),
    "green": (25, 120, 75),
    "teal": (0, 140, 150),
    "black": (28, 28, 32),
    "red": (205, 30, 55),
}


def make_glass(
    height: int, width: int, color: tuple[int, int, int] = PLAIN_GLASS, *, deviation: float = 1.0
) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, deviation, (height, width, 3))
    return (np.array(color) + noise).clip(0, 255).astype(np.uint8)


def draw_disk(size: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.hypot(x - size / 2, y - size / 2) < radius


def draw_stroke(
    rgb: np.ndarray, ink: str, *points: tuple[int, int], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture with a soft stroke over it, and how much ink lies where, 0 to 1."""
    amount = np.zeros(rgb.shape[:2], np.float32)
    cv2.polylines(amount, [np.array(points, np.int32)], False, 1.0, width, cv2.LINE_AA)
    amount = cv2.GaussianBlur(amount, (0, 0), 2)
    dyed = rgb * (np.array(INKS[ink]) / 255)
    mixed = rgb + (dyed - rgb) * amount[..., None]
    return mixed.astype(np.uint8), amount


@pytest.mark.parametrize("deviation", [0, 1.5, 4])
@pytest.mark.parametrize("color", GLASSES)
def test_clean_glass_of_any_tint_holds_no_tissue(color: tuple[int, int, int], deviation: float) -> None:
    assert detect_tissue(make_glass(600, 800, color, deviation=deviation), UM_PX).coverage == 0


@pytest.mark.parametrize("color", GLASSES)
def test_uneven_light_is_no_tissue(color: tuple[int, int, int]) -> None:
    y, x = np.mgrid[:600, :800]
    light = 1 - 0.08 * np.hypot(x / 800 - 0.5, y / 600 - 0.5)
    shaded = make_glass(600, 800, color) * light[..., None]
    assert detect_tissue(shaded.astype(np.uint8), UM_PX).coverage == 0


def test_what_was_never_scanned_is_no_tissue() -> None:
    """Scanners fill it with pure white, whatever the tint of their glass."""
    overview = make_glass(600, 800, (240, 233, 226))
    overview[:, 300:] = 255
    assert detect_tissue(overview, UM_PX).coverage == 0


@pytest.mark.parametrize("color", [(200, 130, 180), (235, 215, 228), (120, 90, 160), (150, 100, 60)])
@pytest.mark.parametrize("glass", GLASSES)
def test_a_stained_disk_is_found_with_its_margin(
    color: tuple[int, int, int], glass: tuple[int, int, int]
) -> None:
    overview, disk = make_glass(600, 600, glass), draw_disk(600, 120)
    overview[disk] = np.array(color) * (np.array(glass) / 255)
    tissue = detect_tissue(overview, UM_PX, margin_um=240)
    assert tissue.mask[draw_disk(600, 120 + 18)].all()
    assert not tissue.mask[~draw_disk(600, 120 + 22)].any()


@given(st.floats(1, 30), st.floats(0, 600))
def test_the_margin_is_a_length_and_at_least_a_pixel(um_px: float, margin_um: float) -> None:
    overview = make_glass(500, 500, deviation=0)
    overview[draw_disk(500, 100)] = (200, 130, 180)
    tissue = detect_tissue(overview, (um_px, um_px), margin_um=margin_um)
    assert tissue.margin_um == margin_um
    radius_px = np.sqrt(tissue.mask.sum() / np.pi)
    reach = max(1.0, margin_um / um_px)
    if 100 + reach < 250:
        assert radius_px == pytest.approx(100 + reach, abs=2.5)


def test_um_px_may_be_given_over_what_the_slide_states() -> None:
    rgb = make_glass(400, 400)
    rgb[draw_disk(400, 50)] = (200, 130, 180)
    stated = find_tissue(ArraySlide(rgb, 10.0))
    given_ = find_tissue(ArraySlide(rgb, None), spacing_um_px=(10.0, 10.0))
    coarse = find_tissue(ArraySlide(rgb, 10.0), spacing_um_px=(50.0, 50.0))
    np.testing.assert_array_equal(stated.mask, given_.mask)
    assert stated.um_px == (10.0, 10.0)
    assert coarse.coverage < stated.coverage  # the margin is the same length, of fewer pixels


def test_a_slide_without_um_px_still_has_a_margin() -> None:
    rgb = make_glass(1000, 1000)
    rgb[draw_disk(1000, 100)] = (200, 130, 180)
    tissue = find_tissue(ArraySlide(rgb, None))
    assert tissue.um_px == (25.0, 25.0)
    assert tissue.mask.mean() > draw_disk(1000, 103).mean()


def test_specks_of_dust_do_not_count() -> None:
    overview = make_glass(1200, 1200)
    overview[600:602, 600:602] = (10, 10, 10)
    overview[40:42, 900:902] = (200, 100, 160)
    assert not detect_tissue(overview, UM_PX).mask.any()


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(3))), st.floats(0.1, 5000)
)
def test_any_tiny_overview_gives_a_mask_of_its_size(overview: np.ndarray, um_px: float) -> None:
    tissue = detect_tissue(overview, (um_px, um_px))
    assert tissue.mask.shape == overview.shape[:2]
    assert tissue.mask.dtype == bool
    assert 0 <= tissue.ink <= 1 - tissue.coverage + 1e-9


@pytest.mark.parametrize("ink", INKS)
def test_ink_on_bare_glass_does_not_run(ink: str) -> None:
    overview, disk = make_glass(900, 1500), np.zeros((900, 1500), bool)
    disk[:, :900] = draw_disk(900, 280)
    overview[disk] = (205, 135, 185)
    overview, amount = draw_stroke(
        overview, ink, (900, 60), (1300, 150), (900, 500), (1400, 520), (1000, 840), width=70
    )
    tissue = detect_tissue(overview, UM_PX)
    assert tissue.mask[disk].all()
    assert not tissue.mask[:, 840:].any()
    assert tissue.ink == pytest.approx((amount > 0.2).mean(), rel=0.15)
    share = f"{100 * tissue.ink:.2f} % of the slide"
    assert tissue.note == f"pen marks or black left out: {share} (--no-tissue runs every tile)"


@pytest.mark.parametrize("ink", INKS)
def test_ink_alone_is_taken_for_tissue_unless_it_is_black(ink: str) -> None:
    """It may be all there is of a section that was stained in that colour."""
    overview, amount = draw_stroke(make_glass(400, 600), ink, (50, 100), (500, 150), (200, 350), width=40)
    tissue = detect_tissue(overview, UM_PX)
    if ink == "black":
        assert tissue.coverage == 0
        assert tissue.ink == pytest.approx((amount > 0.2).mean(), rel=0.2)
        assert tissue.note is not None
    else:
        assert tissue.mask[amount > 0.2].all()
        assert (tissue.ink, tissue.note) == (0, None)


@pytest.mark.parametrize("pale", [0.0, 0.8])
@pytest.mark.parametrize("ink", INKS)
def test_ink_neither_hides_pale_tissue_nor_what_lies_under_it(ink: str, pale: float) -> None:
    disk = draw_disk(900, 200)
    overview = make_glass(900, 900)
    overview[disk] = np.array((205, 135, 185)) * (1 - pale) + np.array(PLAIN_GLASS) * pale
    bare = detect_tissue(overview, UM_PX)
    assert bare.mask[disk].all()
    overview, amount = draw_stroke(overview, ink, (300, 380), (600, 420), (880, 30), width=80)
    tissue = detect_tissue(overview, UM_PX)
    assert tissue.threshold == bare.threshold
    assert tissue.mask[disk].all()
    far = (amount > 0.1) & ~draw_disk(900, 200 + 75)  # the reach of ink and the margin, 850 um
    assert far.any()
    assert not tissue.mask[far].any()


def test_the_black_that_scanners_put_around_a_slide_does_not_run() -> None:
    overview = make_glass(600, 900)
    overview[:, :200] = overview[500:] = 0
    tissue = detect_tissue(overview, UM_PX)
    assert tissue.coverage == 0
    assert tissue.ink == pytest.approx((overview == 0).all(axis=2).mean(), rel=0.02)


def test_a_blue_counterstain_is_no_ink() -> None:
    overview, disk = make_glass(600, 600), draw_disk(600, 150)
    overview[disk] = (170, 180, 215)
    assert detect_tissue(overview, UM_PX).mask[disk].all()


# Haematoxylin without another stain, as scanners show it.
HAEMATOXYLIN = [(150, 160, 200), (130, 140, 195), (120, 125, 190), (110, 120, 180), (100, 110, 165)]


@pytest.mark.parametrize("color", HAEMATOXYLIN)
@pytest.mark.parametrize("spots", [0, 1, 3])
@pytest.mark.parametrize("cores", [False, True])
def test_a_negative_immunostain_is_found_whole(color: tuple[int, int, int], spots: int, cores: bool) -> None:
    """Blue but for spots of DAB: a section, or needle cores of 1 mm, as slender as strokes of a pen."""
    overview, tissue = make_glass(800, 800, (243, 242, 245)), np.zeros((800, 800), bool)
    boxes = [(60 + 120 * i, 100, 84, 600) for i in range(5)] if cores else [(200, 200, 210, 210)]
    for y, x, height, width in boxes:
        tissue[y : y + height, x : x + width] = True
    noise = np.random.default_rng(0).normal(0, 6, (800, 800, 3))
    overview[tissue] = (np.array(color) + noise).clip(0, 255)[tissue]
    for i in range(spots):
        overview[230 + 40 * i : 247 + 40 * i, 220:237] = (140, 95, 60)
    assert detect_tissue(overview, UM_PX).mask[tissue].all()


# What is as dark as a pen and as grey is black.
vivid = st.tuples(*[st.integers(0, 240)] * 3).filter(
    lambda rgb: max(rgb) - min(rgb) > 32 or (max(rgb) - min(rgb) > 24 and min(rgb) > 64)
)


@given(vivid, st.integers(20, 120))
def test_no_colour_of_a_stain_is_lost_where_it_is_alone(color: tuple[int, int, int], size: int) -> None:
    overview = make_glass(300, 300)
    overview[100 : 100 + size // 2, 50 : 50 + size] = color
    tissue = detect_tissue(overview, UM_PX)
    assert tissue.mask[100 : 100 + size // 2, 50 : 50 + size].all()


@given(vivid)
def test_a_section_of_any_colour_is_found_beside_a_larger_one(color: tuple[int, int, int]) -> None:
    """It is broader than any stroke."""
    overview, disk = make_glass(600, 600), np.roll(draw_disk(600, 88), 200, axis=1)
    overview[:, :220] = (205, 135, 185)
    overview[disk] = color
    assert detect_tissue(overview, UM_PX).mask[disk].all()


@given(st.floats(0, 1), st.floats(0, 1))
def test_what_was_left_out_is_told_from_a_hundredth_of_what_runs_on(covered: float, ink: float) -> None:
    mask = np.zeros((10, 100), bool)
    mask[:, : int(100 * covered)] = True
    note = TissueMask(mask, (1.0, 1.0), margin_um=0, threshold=5, ink=ink).note
    if note is None:
        assert ink <= 0.01 * mask.mean()
    else:
        assert ink > 0.01 * mask.mean()
        assert f"{100 * ink:.2f} % of the slide" in note


def test_tissue_of_an_inks_colour_stays_beside_other_tissue() -> None:
    """The collagen of a trichrome is as blue as a pen, and lies among red muscle."""
    overview, disk = make_glass(600, 600), draw_disk(600, 150)
    overview[disk] = (60, 110, 190)
    stripes = disk & (np.arange(600) % 100 < 30)
    overview[stripes] = (190, 60, 110)
    assert detect_tissue(overview, UM_PX).mask[disk].all()


def test_dark_tissue_does_not_hide_pale_tissue() -> None:
    overview = make_glass(600, 900)
    overview[100:300, 100:400] = (90, 40, 120)
    overview[350:550, 500:800] = (236, 228, 236)
    assert detect_tissue(overview, UM_PX).mask[350:550, 500:800].all()


def load(path: Path) -> np.ndarray:
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


@pytest.mark.parametrize(
    ("folder", "um_px"), [("monuseg", 0.25), ("tnbc", 0.5), ("ocdc", 0.5), ("nucls", 0.25)]
)
def test_a_field_of_nothing_but_tissue_is_run_whole(shared_data: Path, folder: str, um_px: float) -> None:
    """Without glass there is nothing to tell tissue from, and nothing that ink could lie on."""
    for path in sorted((shared_data / folder / "images").iterdir()):
        assert find_tissue(ArraySlide(load(path), um_px)).coverage > 0.99, path.name


@pytest.mark.parametrize("pale", [0.0, 0.8])
def test_real_tissue_on_glass_is_found_beside_ink(shared_data: Path, pale: float) -> None:
    """Eight fields, reduced to the scale of an overview and laid on glass, between strokes of every ink."""
    overview, truth = make_glass(700, 1000), np.zeros((700, 1000), bool)
    for i, path in enumerate(sorted((shared_data / "monuseg" / "images").iterdir())[:8]):
        y, x = 80 + 300 * (i // 4), 60 + 240 * (i % 4)
        field = cv2.resize(load(path), (100, 100), interpolation=cv2.INTER_AREA)
        overview[y : y + 100, x : x + 100] = field * (1 - pale) + np.array(PLAIN_GLASS) * pale
        truth[y : y + 100, x : x + 100] = True
    amount = np.zeros(truth.shape)
    for i, ink in enumerate(INKS):
        y = 280 if i < 3 else 600
        overview, here = draw_stroke(
            overview, ink, (60 + 320 * (i % 3), y), (300 + 320 * (i % 3), y), width=30
        )
        amount = np.maximum(amount, here)
    tissue = detect_tissue(overview, UM_PX)
    assert tissue.mask[truth].mean() > (0.995 if pale == 0 else 0.95)
    assert tissue.mask[amount > 0.2].mean() < 0.01


def test_a_real_slide_of_lymph_nodes_in_fat(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "camelyon-jpeg.dcm") as slide:
        tissue, overview = find_tissue(slide), read_overview(slide, 2048)
    assert tissue.um_px == pytest.approx((28.97, 28.97), rel=1e-3)
    assert 0.35 < tissue.coverage < 0.5
    saturation = cv2.cvtColor(overview, cv2.COLOR_RGB2HSV)[..., 1]
    assert tissue.mask[saturation > 60].mean() > 0.999
    assert tissue.mask[660:].mean() < 0.05  # glass below the sections, with some dust
    assert not tissue.mask[:, :40].any()


def test_no_drawn_nucleus_is_lost() -> None:
    rgb, truth = draw_slide(1600, seed=11)
    tissue = find_tissue(ArraySlide(rgb, 0.5), margin_um=10)
    height, width = tissue.mask.shape
    rows, columns = (np.arange(1600) * side // 1600 for side in (height, width))
    assert tissue.mask[rows][:, columns][truth > 0].all()
    assert 0.4 < tissue.coverage < 0.98


def test_a_real_slide_is_mostly_tissue_and_not_all(real_svs: Path) -> None:
    with open_slide(real_svs) as slide:
        tissue = find_tissue(slide)
    assert 0.3 < tissue.coverage < 0.99
    height, width = tissue.mask.shape
    assert height / width == pytest.approx(2967 / 2220, rel=0.01)
    assert width * tissue.um_px[0] == pytest.approx(2220 * 0.499)


def test_the_report_says_how_the_mask_came_about() -> None:
    mask = np.zeros((10, 20), bool)
    mask[:5] = True
    tissue = TissueMask(mask, (12.0, 12.5), margin_um=100.0, threshold=5.0, ink=0.25)
    assert tissue.report() == {
        "coverage": 0.5,
        "ink": 0.25,
        "note": "pen marks or black left out: 25.00 % of the slide (--no-tissue runs every tile)",
        "margin_um": 100.0,
        "threshold": 5.0,
        "size_px": [20, 10],
        "um_px": [12.0, 12.5],
    }


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    hnp.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))),
)
def test_a_tile_runs_when_its_write_region_overlaps_tissue(
    m_width: int, m_height: int, mask: np.ndarray
) -> None:
    grid = plan_grid((m_width, m_height), (32, 32), overlap=8, halo=2, stride_multiple=2)
    tissue = TissueMask(mask, (1.0, 1.0), margin_um=0, threshold=0, ink=0)
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
