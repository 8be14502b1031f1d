from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from histoseg.strips import GAP, STRIP_ROWS, StripStore, join_views

WIDTH, HEIGHT = 7, 2 * STRIP_ROWS + 30


def write(store: StripStore, x: int, y: int, rgb: np.ndarray) -> None:
    for top, rows in store.cut(y, rgb):
        store.write(x, top, rows)


@st.composite
def pieces(draw: st.DrawFn) -> list[tuple[int, int, np.ndarray]]:
    found = []
    for index in range(draw(st.integers(0, 8))):
        x, y = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
        width, height = draw(st.integers(1, WIDTH - x)), draw(st.integers(1, HEIGHT - y))
        found.append((x, y, np.full((height, width, 3), index, np.uint8)))
    return found


@given(pieces(), st.integers(0, HEIGHT - 1), st.integers(1, HEIGHT), st.booleans())
def test_the_first_pixel_stays_and_what_never_came_is_a_gap(
    pushed: list[tuple[int, int, np.ndarray]], top: int, rows: int, filled: bool
) -> None:
    store, expected = StripStore(WIDTH, HEIGHT), np.full((HEIGHT, WIDTH, 3), GAP, np.uint8)
    come = np.zeros((HEIGHT, WIDTH), bool)
    for x, y, rgb in pushed:
        write(store, x, y, rgb)
        place = slice(y, y + len(rgb)), slice(x, x + rgb.shape[1])
        expected[place] = np.where(come[place][..., None], expected[place], rgb)
        come[place] = True
    region = (1, top, WIDTH, min(HEIGHT, top + rows))
    assert store.has(region) == come[top : region[3], 1:].all()
    assert store.fill() == (~come).sum()
    np.testing.assert_array_equal(join_views(store.view(region), region), expected[top : region[3], 1:])


@given(pieces(), st.integers(0, HEIGHT))
def test_only_rows_from_the_floor_on_are_held(pushed: list[tuple[int, int, np.ndarray]], floor: int) -> None:
    store = StripStore(WIDTH, HEIGHT)
    for half in (pushed[::2], pushed[1::2]):
        for x, y, rgb in half:
            write(store, x, y, rgb)
        store.forget(floor)
        rows = HEIGHT - floor // STRIP_ROWS * STRIP_ROWS
        assert store.held_bytes == store.count_held_bytes(0) <= rows * WIDTH * 4
        assert store.count_held_bytes(STRIP_ROWS) <= store.held_bytes
    assert floor < HEIGHT or store.held_bytes == 0


def test_a_strip_that_is_whole_needs_no_mask() -> None:
    store = StripStore(WIDTH, HEIGHT)
    assert store.count_new_bytes(0) == STRIP_ROWS * WIDTH * 4
    write(store, 0, 0, np.zeros((STRIP_ROWS, WIDTH, 3), np.uint8))
    assert store.held_bytes == STRIP_ROWS * WIDTH * 3
    assert store.count_new_bytes(0) == 0
