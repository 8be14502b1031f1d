from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.card import card_from_text, card_to_text
from histoseg.equalize import Equalization, equalize, widen
from histoseg.errors import CardError
from histoseg.options import RunOptions
from histoseg.planning import scale_slide
from histoseg.session import Session
from histoseg.slide import ArraySlide, ScaledSlide, plan_scale

OPTIONS = Equalization(clip_limit=3.0, cell_px=16)


def draw(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(height // 9 + 2, width // 9 + 2, 3)).repeat(9, 0).repeat(9, 1)
    return np.clip(150 + 40 * smooth[:height, :width] + rng.normal(0, 5, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


@given(st.integers(1, 90), st.integers(1, 90), st.data())
def test_a_region_comes_out_as_from_the_whole(height: int, width: int, data: st.DataObject) -> None:
    rgb = draw(height, width, seed=height * width)
    spans = []
    for size in (width, height):
        start = data.draw(st.integers(0, size - 1))
        spans.append((start, data.draw(st.integers(start + 1, size))))
    (x0, x1), (y0, y1) = spans
    (left, right), (top, bottom) = widen(x0, x1, width, 16), widen(y0, y1, height, 16)
    part = equalize(rgb[top:bottom, left:right], OPTIONS)[y0 - top : y1 - top, x0 - left : x1 - left]
    np.testing.assert_array_equal(part, equalize(rgb, OPTIONS)[y0:y1, x0:x1])


def test_dull_contrast_grows_and_colour_stays() -> None:
    dull = (draw(64, 64, seed=1) // 4 + 120).astype(np.uint8)
    lively = equalize(dull, OPTIONS)
    assert lively.astype(float).std() > 1.3 * dull.astype(float).std()
    flat = np.full((40, 50, 3), (200, 120, 170), np.uint8)
    red, green, blue = equalize(flat, OPTIONS)[20, 20].astype(int)
    assert red > blue > green


@pytest.mark.parametrize("values", [{"cell_px": 100}, {"cell_px": 8}, {"clip_limit": 0.0}])
def test_impossible_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(CardError, match=next(iter(values))):
        Equalization(**values)  # type: ignore[arg-type]


@given(st.data())
def test_a_slide_is_read_as_if_it_were_equalised_whole(data: st.DataObject) -> None:
    rgb = draw(100, 75, seed=3)
    slide = ArraySlide(rgb, 0.5)
    scale = plan_scale(slide, 0.5, tolerance=0)
    whole = ScaledSlide(ArraySlide(equalize(rgb, OPTIONS), 0.5), scale)
    lazy = ScaledSlide(slide, scale, OPTIONS)
    place = [data.draw(st.integers(-30, 110)), data.draw(st.integers(-30, 110))]
    size = [data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))]
    np.testing.assert_array_equal(lazy.read(*place, *size), whole.read(*place, *size))
    x0, y0, x1, y1 = lazy.cover(*place, *size)
    assert 0 <= x0 < x1 <= 75
    assert 0 <= y0 < y1 <= 100


def test_a_run_equalises_where_the_card_says_so(open_model: Callable[[str], Session]) -> None:
    session = open_model("threshold")
    card = replace(session.card, input=replace(session.card.input, equalization=OPTIONS))
    assert card_from_text(card_to_text(card)) == card
    slide = ArraySlide(draw(100, 75, seed=3), card.spacing_um_px)
    scaled = scale_slide(slide, SimpleNamespace(card=card), RunOptions())  # type: ignore[arg-type]
    assert scaled.equalization == OPTIONS


def test_it_needs_no_more_than_the_cells_around() -> None:
    assert widen(100, 120, 1000, 16) == (80, 144)
    assert widen(0, 1000, 1000, 16) == (0, 1000)
