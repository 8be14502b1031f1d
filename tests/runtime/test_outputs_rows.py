from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from histoseg.outputs.rows import RowBlocks


@given(st.integers(1, 9), st.lists(st.integers(0, 25), max_size=12))
def test_rows_come_back_in_order_and_in_blocks(height: int, counts: list[int]) -> None:
    rows = np.arange(sum(counts) * 3, dtype=np.uint16).reshape(-1, 3)
    blocks, collector, top = [], RowBlocks(height), 0
    for count in counts:
        blocks += list(collector.push(rows[top : top + count]))
        top += count
    assert all(len(block) == height for block in blocks)
    rest = collector.rest()
    if rest is None:
        assert len(rows) % height == 0
    else:
        assert 0 < len(rest) < height
        blocks.append(rest)
    np.testing.assert_array_equal(np.concatenate([*blocks, rows[:0]]), rows)


def test_what_is_kept_is_a_copy() -> None:
    collector, rows = RowBlocks(4), np.ones((2, 3), np.uint8)
    assert list(collector.push(rows)) == []
    rows[:] = 9
    assert (collector.rest() == 1).all()
