from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.outputs.classes import ClassCounts


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 9)), elements=st.integers(0, 3)),
    st.integers(1, 7),
    st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)),
)
def test_pixels_and_areas_add_up(labels: np.ndarray, rows: int, spacing: tuple[float, float]) -> None:
    names = ("glass", "stroma", "tumour", "never", "neither")
    counts = ClassCounts(names)
    for top in range(0, len(labels), rows):
        counts.add(labels[top : top + rows])
    report = counts.report(spacing)
    assert [entry["name"] for entry in report] == list(names)
    assert [entry["pixels"] for entry in report] == [int((labels == i).sum()) for i in range(5)]
    whole_mm2 = labels.shape[0] * spacing[1] * labels.shape[1] * spacing[0] / 1e6
    assert sum(entry["area_mm2"] for entry in report) == pytest.approx(whole_mm2)
    json.dumps(report)
