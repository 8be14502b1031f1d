from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.morphology import grow, shrink

masks = hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))
radii = st.floats(0, 20)


def measure(mask: np.ndarray) -> np.ndarray:
    """Return each pixel's distance to the nearest pixel of a mask, infinite where it has none."""
    places = np.argwhere(mask)
    distances = np.full(mask.shape, np.inf)
    for place in np.ndindex(*mask.shape):
        if len(places):
            distances[place] = np.hypot(*(places - place).T).min()
    return distances


@given(masks, radii)
def test_growing_reaches_as_far_as_the_radius(mask: np.ndarray, radius: float) -> None:
    distances = measure(mask)
    grown = grow(mask, radius)
    assert grown[distances < radius - 1e-3].all()
    assert not grown[distances > radius + 1e-3].any()


@given(masks, radii)
def test_shrinking_is_growing_of_what_is_outside(mask: np.ndarray, radius: float) -> None:
    np.testing.assert_array_equal(shrink(mask, radius), ~grow(~mask, radius))
    assert not shrink(mask, radius)[~mask].any()


@given(masks, radii)
def test_closing_loses_nothing(mask: np.ndarray, radius: float) -> None:
    assert shrink(grow(mask, radius), radius)[mask].all()
