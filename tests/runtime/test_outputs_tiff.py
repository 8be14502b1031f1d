from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from histoseg.errors import OutputError
from histoseg.outputs import tiff
from histoseg.outputs.tiff import Directory, Entry, TiffStream, build_rational

FIRST_PRIVATE_TAG = 65000
shorts = st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=9).map(lambda v: Entry("short", v))
longs = st.lists(st.integers(0, 0xFFFF_FFFF), min_size=1, max_size=9).map(lambda v: Entry("long", v))
offsets = st.lists(st.integers(0, 0xFFFF_FFFF), min_size=1, max_size=9).map(lambda v: Entry("offset", v))
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(
    lambda v: Entry("text", v.encode())
)
entries = st.dictionaries(
    st.integers(FIRST_PRIVATE_TAG, FIRST_PRIVATE_TAG + 99),
    st.one_of(shorts, longs, offsets, texts),
    min_size=1,
    max_size=6,
)


def describe(stream: TiffStream, values: np.ndarray, more: dict[int, Entry]) -> Directory:
    """Write a grey picture in one strip and return its directory."""
    height, width = values.shape
    kept = {
        256: Entry("long", [width]),
        257: Entry("long", [height]),
        258: Entry("short", [8]),
        259: Entry("short", [1]),
        262: Entry("short", [1]),
        273: Entry("offset", [stream.append(values.tobytes())]),
        277: Entry("short", [1]),
        278: Entry("long", [height]),
        279: Entry("long", [values.size]),
    }
    return Directory({**kept, **more})


def unpack(entry: Entry) -> object:
    if isinstance(entry.values, bytes):
        return entry.values.decode()
    return entry.values[0] if len(entry.values) == 1 else tuple(entry.values)


@settings(max_examples=60)
@given(st.lists(st.tuples(entries, st.integers(0, 2)), min_size=1, max_size=4), st.booleans())
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, chain: list[tuple[dict[int, Entry], int]], big: bool
) -> None:
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    with pytest.MonkeyPatch.context() as patch, TiffStream(path) as stream:
        patch.setattr(tiff, "BIG_ABOVE_BYTES", 0 if big else 1 << 32)
        pictures = []
        for index, (more, subs) in enumerate(chain):
            small = tuple(describe(stream, np.full((1, s + 1), index, np.uint8), more) for s in range(subs))
            picture = describe(stream, np.full((3, index + 2), index, np.uint8), more)
            pictures.append(Directory(picture.entries, small))
        stream.finish(pictures)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_bigtiff == big
        assert len(tif.pages) == len(chain)
        for index, (page, (more, subs)) in enumerate(zip(tif.pages, chain, strict=True)):
            np.testing.assert_array_equal(page.asarray(), np.full((3, index + 2), index))
            assert [sub.shape for sub in page.pages or ()] == [(1, s + 1) for s in range(subs)]
            for found in (page, *(page.pages or ())):
                assert found.offset % 2 == 0  # TIFF 6.0: on a word boundary
                assert {code: found.tags[code].value for code in more} == {
                    code: unpack(entry) for code, entry in more.items()
                }


def test_values_that_two_directories_share_are_written_once(tmp_path: Path) -> None:
    table = {FIRST_PRIVATE_TAG: Entry("long", range(10_000, 30_000))}
    sizes = []
    for count in (1, 2):
        path = tmp_path / f"{count}.tif"
        with TiffStream(path) as stream:
            stream.finish([describe(stream, np.zeros((1, 1), np.uint8), table) for _ in range(count)])
        sizes.append(path.stat().st_size)
    assert 80_000 < sizes[0] < sizes[1] < sizes[0] + 500


@given(st.floats(1e-5, 1e5))
def test_a_resolution_is_as_near_as_a_tiff_allows(spacing: float) -> None:
    value = 10_000 / Fraction(str(spacing))
    top, bottom = build_rational(value).values
    assert 0 < top <= 0xFFFF_FFFF
    assert 0 < bottom <= 0xFFFF_FFFF
    assert float(abs(Fraction(top, bottom) / value - 1)) < 1e-9


@pytest.mark.parametrize(("spacing", "expected"), [("0.5", (20_000, 1)), ("28.97", (1_000_000, 2897))])
def test_a_short_number_is_kept_exactly(spacing: str, expected: tuple[int, int]) -> None:
    assert build_rational(10_000 / Fraction(spacing)).values == expected


def test_a_file_that_is_not_finished_is_no_tiff_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with TiffStream(path) as stream:
        stream.append(bytes(5 << 20))
        assert path.stat().st_size > 1 << 20
        with pytest.raises(tifffile.TiffFileError):
            tifffile.TiffFile(path)
    assert not path.exists()


def test_a_full_disk_is_an_output_error() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    stream = TiffStream(full)
    with pytest.raises(OutputError, match="free space or choose another -o"):
        stream.append(bytes(5 << 20))
