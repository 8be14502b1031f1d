from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from histoseg.card import (
    Blend,
    InputSpec,
    ModelCard,
    OutputSpec,
    Tiling,
    TransformStep,
    card_from_text,
    card_to_text,
    load_card,
)
from histoseg.errors import CardError

GOOD: dict[str, Any] = {
    "architecture": "unet",
    "class_names": ["background", "nucleus"],
    "class_colors": ["#ffffff", "#1B7f3b"],
    "spacing_um_px": 0.5,
    "patch_size_pixels": [64, 48],
    "input": {
        "name": "image",
        "layout": "NHWC",
        "dtype": "uint8",
        "channel_order": "RGB",
        "shape": [None, None, None, 3],
    },
    "output": {"name": "p", "layout": "NHWC", "activation": "softmax", "channels": 2},
    "tiling": {"stride_multiple": 4, "halo_px": 6, "overlap_px": 16},
    "precision": "fp32",
}


def change(path: str, value: Any) -> str:
    """Return the good card as text with one field set; `path` like `tiling.halo_px`."""
    document = json.loads(json.dumps(GOOD))
    *parents, last = path.split(".")
    place = document
    for parent in parents:
        place = place[parent]
    place[last] = value
    return json.dumps(document)


def drop(path: str) -> str:
    document = json.loads(json.dumps(GOOD))
    *parents, last = path.split(".")
    place = document
    for parent in parents:
        place = place[parent]
    del place[last]
    return json.dumps(document)


@st.composite
def cards(draw: st.DrawFn) -> ModelCard:
    count = draw(st.integers(2, 6))
    halo, more, stride = draw(st.integers(0, 9)), draw(st.integers(0, 9)), draw(st.integers(1, 32))
    side = 2 * halo + more + stride + draw(st.integers(0, 100))
    width, height = side, side + draw(st.integers(0, 50))
    layout = draw(st.sampled_from(["NHWC", "NCHW"]))
    sizes = draw(st.sampled_from([(None, None), (height, width), (height, None)]))
    batch = draw(st.sampled_from([None, 1, 8]))
    shape = (batch, *sizes, 3) if layout == "NHWC" else (batch, 3, *sizes)
    triples = st.tuples(*[st.floats(0.01, 10)] * 3)
    steps = st.builds(TransformStep, st.floats(0.001, 9), triples, triples)
    two = count == 2
    return ModelCard(
        architecture=draw(st.text()),
        class_names=tuple(draw(st.lists(st.text(min_size=1), min_size=count, max_size=count, unique=True))),
        class_colors=tuple(
            f"#{color:06x}"
            for color in draw(st.lists(st.integers(0, 0xFFFFFF), min_size=count, max_size=count, unique=True))
        ),
        spacing_um_px=draw(st.floats(0.01, 100)),
        patch_size_pixels=(width, height),
        input=InputSpec(
            draw(st.text()), layout, draw(st.sampled_from(["uint8", "float32", "float16"])),
            draw(st.sampled_from(["RGB", "BGR"])), shape,
        ),
        output=OutputSpec(
            draw(st.text()), draw(st.sampled_from(["NHWC", "NCHW"])),
            draw(st.sampled_from(["softmax", "sigmoid", "logits"])),
            draw(st.sampled_from([1, 2])) if two else count,
            draw(st.none() | st.floats(0.01, 0.99)) if two else None,
        ),
        tiling=Tiling(stride, halo, 2 * halo + more, draw(st.sampled_from(get_args(Blend)))),
        precision=draw(st.sampled_from(["fp32", "fp16", "int8"])),
        background_index=draw(st.integers(0, count - 1)),
        spacing_tolerance=draw(st.floats(0, 0.49)),
        transform=tuple(draw(st.lists(steps, max_size=2))),
        training=draw(st.dictionaries(st.text(), st.floats(0, 1) | st.text(), max_size=3)),
    )  # fmt: skip


@given(cards())
def test_a_card_survives_its_text(card: ModelCard) -> None:
    assert card_from_text(card_to_text(card)) == card


@given(cards(), st.randoms())
def test_the_order_of_fields_does_not_matter(card: ModelCard, random: Any) -> None:
    items = list(json.loads(card_to_text(card)).items())
    random.shuffle(items)
    assert card_from_text(json.dumps(dict(items))) == card


def test_the_smallest_card_is_good() -> None:
    card = card_from_text(json.dumps(GOOD))
    assert card.background_index == 0
    assert card.tiling.blend == "cosine"
    assert "research" in card.intended_use.lower()


def fields_of(document: dict[str, Any], where: str = "") -> list[str]:
    names = []
    for name, value in document.items():
        names.append(where + name)
        if isinstance(value, dict):
            names += fields_of(value, f"{where}{name}.")
    return names


REQUIRED = fields_of(GOOD)


@pytest.mark.parametrize("path", REQUIRED)
def test_each_required_field_is_missed_by_name(path: str) -> None:
    with pytest.raises(CardError, match=f"'{path}' is missing"):
        card_from_text(drop(path))


@pytest.mark.parametrize("path", REQUIRED)
@pytest.mark.parametrize("value", [None, True, {"a": 1}, [[]]], ids=["null", "true", "object", "list"])
def test_each_field_of_the_wrong_type_is_refused_by_name(path: str, value: Any) -> None:
    with pytest.raises(CardError) as caught:
        card_from_text(change(path, value))
    assert path in str(caught.value)


@pytest.mark.parametrize("path", ["extra", "input.extra", "output.extra", "tiling.extra", "spacing_um_pixel"])
def test_each_unknown_field_is_refused_by_name(path: str) -> None:
    with pytest.raises(CardError, match=f"unknown field '{path}'"):
        card_from_text(change(path, 1))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("schema_version", 2, "schema_version"),
        ("schema_version", 0, "schema_version"),
        ("task", "detection", "task"),
        ("class_names", ["only"], "class_names"),
        ("class_names", ["twice", "twice"], "class_names"),
        ("class_names", [f"c{i}" for i in range(256)], "class_names"),
        ("class_colors", ["#ffffff"], "class_colors"),
        ("class_colors", ["#ffffff", "green"], "class_colors[1]"),
        ("class_colors", ["#fffff", "#1b7f3b"], "class_colors[0]"),
        ("class_colors", ["#ffffff\n", "#1b7f3b"], "class_colors[0]"),
        ("background_index", 2, "background_index"),
        ("background_index", -1, "background_index"),
        ("spacing_um_px", 0, "spacing_um_px"),
        ("spacing_um_px", -0.5, "spacing_um_px"),
        ("spacing_tolerance", -0.1, "spacing_tolerance"),
        ("spacing_tolerance", 0.5, "spacing_tolerance"),
        ("patch_size_pixels", [0, 64], "patch_size_pixels"),
        ("patch_size_pixels", [64, -64], "patch_size_pixels"),
        ("input.shape", [None, None, 3], "input.shape"),
        ("input.shape", [0, None, None, 3], "input.shape"),
        ("input.shape", [None, None, None, 1], "input.shape"),
        ("input.shape", [None, None, None, 4], "input.shape"),
        ("input.shape", [None, 3, None, None], "input.shape"),
        ("input.shape", [None, 64, 48, 3], "patch_size_pixels"),
        ("input.layout", "CHW", "input.layout"),
        ("input.dtype", "int8", "input.dtype"),
        ("input.color_space", "srgb", "input.color_space"),
        ("input.channel_order", "GBR", "input.channel_order"),
        ("output.channels", 3, "output.channels"),
        ("output.channels", 0, "output.channels"),
        ("output.activation", "relu", "output.activation"),
        ("output.threshold", 0, "output.threshold"),
        ("output.threshold", 1, "output.threshold"),
        ("tiling.stride_multiple", 0, "tiling.stride_multiple"),
        ("tiling.halo_px", -1, "tiling.halo_px"),
        ("tiling.overlap_px", 11, "tiling.overlap_px"),
        ("tiling.overlap_px", 45, "tiling.overlap_px"),
        ("tiling.blend", "average", "tiling.blend"),
        ("precision", "fp64", "precision"),
        ("transform", [{"std": [1, 0, 1]}], "transform[0].std"),
        ("transform", [{"mean": [1, 0]}], "transform[0].mean"),
    ],
)  # fmt: skip
def test_each_impossible_value_is_refused_by_name(path: str, value: Any, named: str) -> None:
    with pytest.raises(CardError) as caught:
        card_from_text(change(path, value))
    assert f"'{named}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_threshold_is_for_two_classes_only() -> None:
    document = GOOD | {
        "class_names": ["a", "b", "c"],
        "class_colors": ["#000000", "#808080", "#ffffff"],
        "output": GOOD["output"] | {"channels": 3, "threshold": 0.4},
    }
    with pytest.raises(CardError, match=r"'output.threshold'"):
        card_from_text(json.dumps(document))


@given(cards(), st.data())
def test_two_classes_of_one_colour_are_refused_by_name(card: ModelCard, data: st.DataObject) -> None:
    one, other = data.draw(
        st.lists(st.integers(0, len(card.class_names) - 1), min_size=2, max_size=2, unique=True)
    )
    colors = list(card.class_colors)
    colors[other] = colors[one].upper()
    with pytest.raises(CardError) as caught:
        replace(card, class_colors=tuple(colors))
    said = str(caught.value)
    assert "'class_colors'" in said
    assert all(repr(card.class_names[index]) in said for index in (one, other))
    assert "expected colours that differ; give one of them another" in said
    assert "\n" not in said


@given(st.text())
def test_any_other_text_is_refused_with_a_card_error(text: str) -> None:
    assume(not text.strip().startswith("{"))
    with pytest.raises(CardError):
        card_from_text(text)


def test_a_hostile_document_is_refused_with_a_card_error() -> None:
    with pytest.raises(CardError):
        card_from_text('{"spacing_um_px": ' + "1" * 5000 + "}")  # more digits than Python converts


def test_a_sidecar_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    assert load_card(path) == card_from_text(json.dumps(GOOD))


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"{", b"[]"])
def test_an_unreadable_sidecar_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CardError, match=r"model\.json"):
        load_card(path)


def test_a_card_that_says_nothing_of_colours_means_pixels_as_stored() -> None:
    assert card_from_text(json.dumps(GOOD)).input.color_space == "device"
    assert card_from_text(change("input.color_space", "sRGB")).input.color_space == "sRGB"
