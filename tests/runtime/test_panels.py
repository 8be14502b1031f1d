from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg.panels import SLICE_ROWS, join_panels


def cut(labels: np.ndarray, columns: list[int], rows: list[int]) -> list[tuple[int, np.ndarray]]:
    """Return the pieces of labels between the given cuts, panel by panel."""
    xs, ys = [0, *columns, labels.shape[1]], [0, *rows, labels.shape[0]]
    return [
        (y0, labels[y0:y1, x0:x1]) for x0, x1 in itertools.pairwise(xs) for y0, y1 in itertools.pairwise(ys)
    ]


@settings(max_examples=30)
@given(
    height=st.integers(2, 300),
    width=st.integers(2, 60),
    columns=st.sets(st.integers(1, 59), max_size=4),
    rows=st.sets(st.integers(1, 299), max_size=3),
    seed=st.integers(0, 100),
)
def test_panels_join_to_the_labels_they_were_cut_from(
    tmp_path_factory, height: int, width: int, columns: set[int], rows: set[int], seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, (height, width), dtype=np.uint8)
    xs, ys = sorted(c for c in columns if c < width), sorted(r for r in rows if r < height)
    folder = tmp_path_factory.mktemp("spool")
    joined = list(join_panels(cut(labels, xs, ys), len(xs) + 1, folder))
    assert [m_y for m_y, _ in joined] == np.cumsum([0, *(len(part) for _, part in joined)])[:-1].tolist()
    np.testing.assert_array_equal(np.concatenate([part for _, part in joined]), labels)
    assert max(len(part) for _, part in joined) <= SLICE_ROWS
    assert list(folder.iterdir()) == []


def test_one_panel_needs_no_file(tmp_path: Path) -> None:
    rows = [(0, np.zeros((100, 5), np.uint8)), (100, np.ones((3, 5), np.uint8))]
    joined = list(join_panels(rows, 1, tmp_path / "absent"))
    assert [(m_y, len(labels)) for m_y, labels in joined] == [(0, 64), (64, 36), (100, 3)]


def test_a_run_that_stops_leaves_no_spool(tmp_path: Path) -> None:
    def rows():
        yield 0, np.zeros((100, 5), np.uint8)
        raise RuntimeError("stop")

    joined = join_panels(rows(), 2, tmp_path)
    try:
        next(joined)
    except RuntimeError:
        pass
    else:
        raise AssertionError("the failure was swallowed")
    assert list(tmp_path.iterdir()) == []
