from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.errors import CardError
from histoseg.jsonclass import from_json, to_json


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    name: str
    ratio: float
    inner: Inner
    many: tuple[Inner, ...] = ()
    maybe: int | None = None
    flag: bool = False
    free: dict[str, Any] | None = None


GOOD = {"name": "x", "ratio": 0.5, "inner": {"size": [1, 2]}}

inners = st.builds(Inner, st.tuples(st.integers(), st.integers()), st.sampled_from(["a", "b"]))
outers = st.builds(
    Outer,
    st.text(),
    st.floats(allow_nan=False, allow_infinity=False),
    inners,
    st.lists(inners, max_size=3).map(tuple),
    st.none() | st.integers(),
    st.booleans(),
    st.none() | st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=3),
)


@given(outers)
def test_any_value_survives_json(value: Outer) -> None:
    assert from_json(Outer, json.loads(json.dumps(to_json(value)))) == value


def test_defaults_may_be_absent_and_whole_numbers_are_numbers() -> None:
    value = from_json(Outer, {**GOOD, "ratio": 2})
    assert value == Outer("x", 2.0, Inner((1, 2)))
    assert type(value.ratio) is float


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nmae": 1}, "nmae"),
        ({"inner": {"size": [1, 2], "sise": 3}}, "inner.sise"),
        ({"name": 3}, "name"),
        ({"name": None}, "name"),
        ({"ratio": "0.5"}, "ratio"),
        ({"ratio": True}, "ratio"),
        ({"ratio": math.nan}, "ratio"),
        ({"ratio": math.inf}, "ratio"),
        ({"ratio": 10**400}, "ratio"),
        ({"inner": []}, "inner"),
        ({"inner": {}}, "inner.size"),
        ({"inner": {"size": [1, 2, 3]}}, "inner.size"),
        ({"inner": {"size": [1, 2.5]}}, "inner.size[1]"),
        ({"inner": {"size": [1, True]}}, "inner.size[1]"),
        ({"inner": {"size": [1, 2], "kind": "c"}}, "inner.kind"),
        ({"inner": {"size": [1, 2], "kind": ["a"]}}, "inner.kind"),
        ({"many": {}}, "many"),
        ({"many": [{"size": [1, 2]}, {"size": "12"}]}, "many[1].size"),
        ({"maybe": 1.0}, "maybe"),
        ({"flag": 1}, "flag"),
        ({"free": []}, "free"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CardError) as caught:
        from_json(Outer, GOOD | change)
    assert re.search(rf"(^|['\s]){re.escape(named)}(['\s]|$)", str(caught.value))


@pytest.mark.parametrize("name", ["name", "ratio", "inner"])
def test_what_is_missing_is_named(name: str) -> None:
    with pytest.raises(CardError, match=f"'{name}' is missing"):
        from_json(Outer, {key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize("document", [None, [], "text", 3])
def test_anything_but_an_object_is_refused(document: Any) -> None:
    with pytest.raises(CardError, match="expected an object"):
        from_json(Outer, document)
