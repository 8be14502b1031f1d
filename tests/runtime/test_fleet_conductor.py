from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from histoseg.command import Terminated
from histoseg.fleet import here
from histoseg.fleet.conductor import run_fleet
from histoseg.fleet.run import FleetError, ModelChoice, Order, Outcome
from histoseg.fleet.sources import SlideSource
from histoseg.options import RunOptions

SLIDES = [SlideSource(Path(f"{name}.svs"), name) for name in "abc"]


@pytest.mark.parametrize(
    ("error", "code"), [(FleetError("lost"), 1), (KeyboardInterrupt(), 130), (Terminated(), 143)]
)
def test_whatever_ends_a_run_leaves_a_summary(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def run(*given: object) -> Iterator[tuple[int, Outcome]]:
        yield 1, Outcome(reason="b.svs: torn")
        raise error

    monkeypatch.setattr(here.Here, "run", run)
    events: list[dict[str, Any]] = []
    choice = ModelChoice(models / "conv.onnx", "cpu")
    with pytest.raises(type(error)):
        run_fleet(SLIDES, choice, Order(tmp_path / "out", RunOptions()), events.append)
    assert [event["event"] for event in events] == ["start", "failed", "end"]
    assert (events[-1]["code"], events[-1]["failed"], events[-1]["stopped"]) == (code, 1, 2)
    document = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (document["failed"], document["stopped"]) == (1, 2)
    assert [row["status"] for row in document["slides"]] == ["stopped", "failed", "stopped"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "the run was stopped" in page
    assert "3 slides, 1 failed, 2 stopped" in page


def test_events_are_json_in_order_and_begin_with_their_kind(models: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    order = Order(tmp_path / "out", RunOptions())
    rows = run_fleet(SLIDES, ModelChoice(models / "conv.onnx", "cpu"), order, events.append, summary=False)
    assert [row["status"] for row in rows] == ["failed"] * 3
    assert all(next(iter(event)) == "event" for event in events)
    assert json.loads(json.dumps(events)) == events
    assert [event.get("slide") for event in events] == [
        None, "a.svs", "a.svs", "b.svs", "b.svs", "c.svs", "c.svs", None,
    ]  # fmt: skip
    assert events[0]["model"] == "conv"
    assert events[-1]["summary"] is None
    assert not (tmp_path / "out").exists()
