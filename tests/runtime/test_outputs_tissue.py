from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.errors import OutputError
from histoseg.outputs.tissue import write_tissue

masks = hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(masks)
def test_a_written_mask_reads_back_as_black_and_white(
    tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("tissue") / "tissue.png"
    write_tissue(path, mask)
    read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, mask * np.uint8(255))


def test_a_mask_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere.tissue\.png"):
        write_tissue(tmp_path / "nowhere" / "tissue.png", np.ones((2, 2), bool))
