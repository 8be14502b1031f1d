from __future__ import annotations

from xml.etree.ElementTree import Element

import pytest
from defusedxml.ElementTree import fromstring
from hypothesis import given
from hypothesis import strategies as st

from histoseg.outputs.ome import NAMESPACE, OmeImage, build_ome_xml

AWKWARD = ("a<b", 'she said "no"', "R&D", "it's", "µm ≥ 5", "&#10;", "", "line\nbreak", "nul\0", "\ud800")
names = st.one_of(st.sampled_from(AWKWARD), st.text(max_size=12))


def find(xml: bytes, path: str) -> list[Element]:
    return fromstring(xml).findall(path, {"": NAMESPACE})


def build(channels: list[str], notes: dict[str, list[str]], color: str | None = None) -> bytes:
    pairs = [(name, color) for name in channels]
    return build_ome_xml(OmeImage("labels", "about", (30, 20), (0.5, 0.25), pairs, notes))


def clean(text: str) -> str:
    """Return what is left of a name: no control characters, no lone surrogates, no non-characters."""
    bad = {*range(32), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF}
    return "".join("\ufffd" if ord(c) in bad else c for c in text)


@given(st.lists(names, min_size=1, max_size=5), st.lists(names, max_size=5))
def test_any_name_comes_back(channels: list[str], classes: list[str]) -> None:
    xml = build(channels, {"histoseg:class-names": classes})
    assert [c.get("Name") for c in find(xml, ".//Channel")] == [clean(name) for name in channels]
    pairs = [(m.get("K"), m.text or "") for m in find(xml, ".//MapAnnotation/Value/M")]
    assert pairs == [(str(i), clean(name)) for i, name in enumerate(classes)]
    # Bio-Formats breaks every character reference, and with it whatever holds one
    assert b"&#" not in xml


def test_sizes_and_spacings_are_said() -> None:
    xml = build(["a", "b", "c"], {})
    (pixels,) = find(xml, "Image/Pixels")
    sizes = {axis: pixels.get(f"Size{axis}") for axis in "XYZCT"}
    assert sizes == {"X": "30", "Y": "20", "Z": "1", "C": "3", "T": "1"}
    assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit")) == ("0.5", "µm")
    assert (pixels.get("PhysicalSizeY"), pixels.get("PhysicalSizeYUnit")) == ("0.25", "µm")
    planes = [(data.get("FirstC"), data.get("IFD")) for data in find(xml, ".//TiffData")]
    assert planes == [("0", "0"), ("1", "1"), ("2", "2")]


def test_notes_are_referred_to_by_the_image() -> None:
    xml = build(["a"], {"one": ["x"], "two": ["y", "z"]})
    kept = {note.get("ID"): note.get("Namespace") for note in find(xml, "StructuredAnnotations/*")}
    assert sorted(kept.values()) == ["one", "two"]
    assert [ref.get("ID") for ref in find(xml, "Image/AnnotationRef")] == list(kept)
    assert not find(build(["a"], {}), "StructuredAnnotations")


@pytest.mark.parametrize(
    ("color", "expected"), [("#000000", 255), ("#ffffff", -1), ("#ff0000", -16776961), ("#00a000", 10486015)]
)
def test_a_colour_is_a_signed_number(color: str, expected: int) -> None:
    (channel,) = find(build(["a"], {}, color), ".//Channel")
    assert channel.get("Color") == str(expected)


def test_the_same_picture_gives_the_same_bytes() -> None:
    assert build(["a"], {"one": ["x"]}) == build(["a"], {"one": ["x"]})
