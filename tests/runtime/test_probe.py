from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from histoseg.card import METADATA_KEY, card_from_text
from histoseg.errors import ProviderError, SlideError
from histoseg.models import default_model, probe_model
from histoseg.probe import predict_probe, probe_openslide, probe_provider, time_model
from histoseg.session import open_session


def load_script(models: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_models", models / "make_models.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_probe_is_what_its_script_makes(models: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the lean install makes no models")
    script = load_script(models)
    shipped = onnx.load(probe_model())
    assert shipped.graph.SerializeToString() == script.build_probe().graph.SerializeToString()
    assert [node.op_type for node in shipped.graph.node] == ["Conv"]
    (text,) = [entry.value for entry in shipped.metadata_props if entry.key == METADATA_KEY]
    assert card_from_text(text) == script.build_probe_card()


def test_the_prediction_is_the_models() -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (2, 9, 13, 3), dtype=np.uint8)
    with open_session(probe_model(), provider="cpu") as session:
        np.testing.assert_allclose(session.run(rgb), predict_probe(rgb), atol=1e-6)


def test_a_prediction_sees_its_neighbours_and_nothing_beyond() -> None:
    rgb = np.zeros((1, 7, 7, 3), np.uint8)
    rgb[0, 3, 3, 0] = 255
    red = predict_probe(rgb)[0, ..., 0]
    np.testing.assert_array_equal(red > 0.5, np.pad(np.ones((3, 3), bool), 2))


def test_the_cpu_passes() -> None:
    probe_provider("cpu")


def test_half_precision_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a provider would give it that runs fp32 in less, unasked."""
    from histoseg import probe

    def predict_in_half(rgb: np.ndarray) -> np.ndarray:
        return predict_probe(rgb).astype(np.float16).astype(np.float32)

    monkeypatch.setattr(probe, "predict_probe", predict_in_half)
    with pytest.raises(ProviderError, match="wrong results"):
        probe_provider("cpu")


def test_openslide_reads_what_was_written() -> None:
    import openslide

    assert probe_openslide() == openslide.__library_version__


def test_openslide_that_reads_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import tifffile

    write = tifffile.imwrite
    monkeypatch.setattr(tifffile, "imwrite", lambda path, rgb, **options: write(path, 255 - rgb, **options))
    with pytest.raises(SlideError, match="other pixels"):
        probe_openslide()


def test_a_model_is_timed_and_its_nodes_counted() -> None:
    seconds, placement = time_model(default_model(), "cpu")
    assert seconds > 0
    assert set(placement) == {"cpu"}
