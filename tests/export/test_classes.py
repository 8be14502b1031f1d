"""What a person says of classes: colours that are given stay, and no two classes share one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg_export.classes import PALETTE, fill_colors, parse_classes

colors = st.sampled_from(PALETTE) | st.integers(0, 0xFFFFFF).map(lambda value: f"#{value:06x}")


def test_a_colour_that_is_left_out_is_that_of_its_place() -> None:
    assert parse_classes("a=#FF0000, b") == (("a", "b"), ("#ff0000", PALETTE[1]))
    assert parse_classes(",".join("abcdefgh"))[1] == PALETTE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,,b", "no name"),
        ("a=red", "'red', expected #rrggbb"),
        ("a=#ff0000,b,c=#FF0000", "are #ff0000, expected colours that differ"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_classes(text)


@given(said=st.lists(colors, unique=True, max_size=12), gaps=st.lists(st.integers(0, 12), max_size=20))
def test_colours_that_are_filled_in_differ_from_all_others(said: list[str], gaps: list[int]) -> None:
    wanted = list(said)
    for place in gaps:
        wanted.insert(place, "")
    filled = fill_colors(wanted)
    assert len(set(filled)) == len(wanted)
    assert all(color == given for color, given in zip(filled, wanted, strict=True) if given)
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in filled)


def test_as_many_classes_as_a_card_takes_get_colours_that_differ() -> None:
    assert len(set(fill_colors([""] * 255))) == 255
