from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.colors import parse_color

bytes_ = st.integers(0, 255)


@given(bytes_, bytes_, bytes_)
def test_a_colour_survives_its_text(red: int, green: int, blue: int) -> None:
    assert parse_color(f"#{red:02x}{green:02X}{blue:02x}") == (red, green, blue)
    assert parse_color(f"{red:02x}{green:02x}{blue:02x}") == (red, green, blue)


@pytest.mark.parametrize("text", ["", "#12345", "#1234567", "#gggggg"])
def test_what_is_no_colour_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_color(text)
