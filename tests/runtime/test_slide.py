from __future__ import annotations

import numpy as np
import pytest

import histoseg.slide
from histoseg.errors import SlideError
from histoseg.slide import ArraySlide


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
    ids=lambda a: f"{a.dtype}-{a.shape}",
)
def test_arrays_of_another_kind_are_refused(array: np.ndarray) -> None:
    with pytest.raises(SlideError, match="expected uint8"):
        ArraySlide(array, 0.5)


def test_names_that_others_import_stay_here() -> None:
    for name in histoseg.slide.__all__:
        assert getattr(histoseg.slide, name).__module__.startswith("histoseg.")
