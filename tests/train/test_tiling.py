"""Tiles advance by strides, and share two halos and a cross-fade wherever they are large enough."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from histoseg_train.tiling import fit_tiling

sides = st.integers(16, 4096)
strides = st.sampled_from([1, 2, 3, 8, 32])


@given(side=sides, stride=strides, halo=st.integers(0, 1024))
def test_tiles_advance_by_strides_and_share_at_least_their_halos(side: int, stride: int, halo: int) -> None:
    assume(stride <= side)
    tiling = fit_tiling(side, stride=stride, halo=halo)
    step = side - tiling.overlap_px
    assert step >= stride
    assert step % stride == 0
    assert 2 * tiling.halo_px <= tiling.overlap_px
    assert tiling.halo_px <= halo


@given(side=sides, stride=strides, halo=st.integers(0, 1024))
def test_nothing_is_given_up_where_there_is_room(side: int, stride: int, halo: int) -> None:
    fade = max(side // 64, 16)
    assume(side - 2 * halo - fade >= stride)
    tiling = fit_tiling(side, stride=stride, halo=halo)
    assert tiling.halo_px == halo
    assert fade <= tiling.overlap_px - 2 * halo < fade + stride, "and nothing is shared in vain"


@given(stride=strides, halo=st.integers(1, 1024), more=st.integers(0, 15))
def test_the_halo_is_kept_longer_than_the_fade(stride: int, halo: int, more: int) -> None:
    tiling = fit_tiling(2 * halo + stride + more, stride=stride, halo=halo)
    assert tiling.halo_px == halo
    assert tiling.overlap_px < 2 * halo + 16
