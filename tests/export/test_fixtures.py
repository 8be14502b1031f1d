"""The committed ONNX files are what their script makes, and what their cards say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from histoseg.card import METADATA_KEY, card_from_text

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_models", DATA / "make_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_are_what_the_script_makes(script, tmp_path):
    script.main(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (DATA / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["constant", "threshold", "conv", "unet"])
def test_halo_is_the_receptive_field(name):
    model = onnx.load(DATA / f"{name}.onnx")
    card = card_from_text({p.key: p.value for p in model.metadata_props}[METADATA_KEY])
    session = onnxruntime.InferenceSession(DATA / f"{name}.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    (before,) = session.run(None, {"image": image})
    reach = 0
    for y, x in [(32, 32), (32, 33), (33, 32), (33, 33)] * 6:
        changed = image.copy()
        changed[0, y, x] = rng.integers(0, 256, 3)
        rows, columns = np.nonzero((session.run(None, {"image": changed})[0] != before)[0].any(-1))
        reach = max([reach, *np.abs(rows - y), *np.abs(columns - x)])
    assert reach == card.tiling.halo_px
