from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.outputs.report.markup import Html, build_page, escape, isolate, join, list_facts, tag
from histoseg.outputs.report.words import say_number, say_seconds, say_share

# a parser drops or replaces some control characters, and joins line ends
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=40)


class Reader(HTMLParser):
    """Collects what a browser would take for elements and for text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(TEXT, TEXT)
def test_whatever_a_text_holds_it_stays_that_text(text: str, other: str) -> None:
    page = Reader(tag("p", {"title": text}, other, isolate(text)))
    assert page.elements == [("p", {"title": text or None}), ("bdi", {})]
    assert page.text == other + text


@given(st.lists(TEXT, max_size=4))
def test_escaping_twice_is_escaping_once(texts: list[str]) -> None:
    assert escape(join(texts)) == join(texts) == "".join(map(escape, texts))


def test_bytes_of_a_name_that_are_no_text_can_be_written() -> None:
    assert escape("slide\udcff.svs").encode() == b"slide?.svs"


def test_facts_that_are_not_known_are_left_out() -> None:
    assert Reader(list_facts((("a", 0), ("b", None), ("c", "")))).text == "a0c"


@given(st.text("$<>&\"'{}abc", max_size=20))
def test_a_page_lets_its_own_script_and_style_through_and_names_them(title: str) -> None:
    style, script = "p { color: red }", "let a = `${1}`;"
    page = Reader(build_page(title, tag("p", None, "$body $$"), style=style, script=script))
    policy = dict(page.elements)["meta"]
    policies = [a["content"] for name, a in page.elements if name == "meta" and a.get("http-equiv")]
    assert policy
    hashes = re.findall(r"'sha256-([^']+)'", str(policies[0]))
    digests = [hashlib.sha256(text.encode()).digest() for text in (style, script)]
    assert [base64.b64decode(text) for text in hashes] == digests
    assert str(policies[0]).startswith("default-src 'none'")
    assert "unsafe" not in str(policies[0])
    assert "$body $$" in page.text
    assert title in page.text
    assert Html("") == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (2.5e-7, "<0.0001"), (0.066132, "0.0661"), (0.99999, "1.00"), (3.8217, "3.82"), (99.99, "100"),
     (12345.6, "12\u202f346")],
)  # fmt: skip
def test_a_number_has_the_digits_that_mean_something(value: float, words: str) -> None:
    assert say_number(value) == words


@given(st.floats(1e-4, 1e7))
def test_a_number_is_said_to_half_a_percent(value: float) -> None:
    assert float(say_number(value).replace("\u202f", "")) == pytest.approx(value, rel=5.1e-3)


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [(0, 9, "0\u202f%"), (9, 9, "100\u202f%"), (1, 10**6, "<0.01\u202f%"), (1, 8, "12.50\u202f%"),
     (10**6 - 1, 10**6, ">99.99\u202f%"), (0, 0, "\u2013")],
)  # fmt: skip
def test_a_share_is_neither_none_nor_all_unless_it_is(part: float, whole: float, words: str) -> None:
    assert say_share(part, whole) == words


def test_long_times_are_said_in_minutes_and_hours() -> None:
    assert [say_seconds(s) for s in (0.04, 119, 120, 9000)] == [
        "0.0\u202fs", "119.0\u202fs", "2.0\u202fmin", "2.5\u202fh"
    ]  # fmt: skip
