from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg.finished import Rows
from histoseg.panels import SLICE_ROWS, join_panels


def cut(values: np.ndarray, columns: list[int], rows: list[int]) -> list[Rows]:
    """Return the pieces between the given cuts, panel by panel; the first channel is the labels."""
    xs, ys = [0, *columns, values.shape[1]], [0, *rows, values.shape[0]]
    return [
        Rows(y0, values[y0:y1, x0:x1, 0], values[y0:y1, x0:x1, 1:] if values.shape[2] > 1 else None)
        for x0, x1 in itertools.pairwise(xs)
        for y0, y1 in itertools.pairwise(ys)
    ]


@settings(max_examples=30)
@given(
    height=st.integers(2, 300),
    width=st.integers(2, 60),
    classes=st.integers(0, 3),
    columns=st.sets(st.integers(1, 59), max_size=4),
    rows=st.sets(st.integers(1, 299), max_size=3),
    seed=st.integers(0, 100),
)
def test_panels_join_to_what_they_were_cut_from(
    tmp_path_factory, height: int, width: int, classes: int, columns: set[int], rows: set[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, (height, width, 1 + classes), dtype=np.uint8)
    xs, ys = sorted(c for c in columns if c < width), sorted(r for r in rows if r < height)
    folder = tmp_path_factory.mktemp("spool")
    joined = list(join_panels(cut(values, xs, ys), len(xs) + 1, folder))
    heights = [len(part.labels) for part in joined]
    assert [part.m_y for part in joined] == np.cumsum([0, *heights])[:-1].tolist()
    np.testing.assert_array_equal(np.concatenate([part.labels for part in joined]), values[..., 0])
    if classes:
        np.testing.assert_array_equal(np.concatenate([part.shares for part in joined]), values[..., 1:])
    else:
        assert all(part.shares is None for part in joined)
    assert max(heights) <= SLICE_ROWS
    assert list(folder.iterdir()) == []


def test_one_panel_needs_no_file(tmp_path: Path) -> None:
    rows = [Rows(0, np.zeros((100, 5), np.uint8)), Rows(100, np.ones((3, 5), np.uint8))]
    joined = list(join_panels(rows, 1, tmp_path / "absent"))
    assert [(part.m_y, len(part.labels)) for part in joined] == [(0, 64), (64, 36), (100, 3)]


def test_a_run_that_stops_leaves_no_spool(tmp_path: Path) -> None:
    def rows():
        yield Rows(0, np.zeros((100, 5), np.uint8))
        raise RuntimeError("stop")

    joined = join_panels(rows(), 2, tmp_path)
    try:
        next(joined)
    except RuntimeError:
        pass
    else:
        raise AssertionError("the failure was swallowed")
    assert list(tmp_path.iterdir()) == []
