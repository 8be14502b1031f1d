from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from histoseg.errors import ModelError, ProviderError
from histoseg.load import GPU_THREADS, count_placement, load_on, load_plainly, require_placement


def test_nodes_are_counted_by_our_names(models: Path) -> None:
    session = load_on(onnxruntime, "cpu", models / "conv.onnx", precision="fp32", threads=1)
    assert count_placement(session) == {"cpu": 10}


def test_an_onnxruntime_that_cannot_tell_is_believed() -> None:
    assert count_placement(SimpleNamespace()) is None
    require_placement(None, "cuda", "m.onnx")


def test_a_whole_graph_on_the_provider_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    require_placement({"cuda": 12}, "cuda", "m.onnx")
    assert not caplog.records


def test_nodes_elsewhere_are_never_silent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        require_placement({"tensorrt": 50, "cuda": 2, "cpu": 7}, "tensorrt", "m.onnx")
    assert "provider tensorrt runs 50 of 59 nodes; 2 on cuda, 7 on cpu" in caplog.text


def test_no_node_on_the_provider_is_refused() -> None:
    with pytest.raises(ProviderError, match=r"'cuda' runs none of the 12 nodes of m\.onnx \(12 on cpu\)"):
        require_placement({"cpu": 12}, "cuda", "m.onnx")


def test_on_a_gpu_the_readers_keep_the_cores(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's own options say how many threads it made."""
    monkeypatch.setattr("histoseg.load.count_cpus", lambda: 16)
    cpu = load_on(onnxruntime, "cpu", models / "conv.onnx", precision="fp32", threads=None)
    assert cpu.get_session_options().intra_op_num_threads == 16
    asked = load_on(onnxruntime, "cpu", models / "conv.onnx", precision="fp32", threads=3)
    assert asked.get_session_options().intra_op_num_threads == 3
    from histoseg.load import _choose_threads

    assert _choose_threads("cuda") == _choose_threads("tensorrt") == GPU_THREADS


def test_what_is_no_model_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08" + bytes(99))
    with pytest.raises(ModelError, match=r"m\.onnx: not an ONNX model") as caught:
        load_plainly(onnxruntime, path)
    assert "\n" not in str(caught.value)
