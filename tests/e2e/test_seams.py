"""What a person would see where tiles meet: the default model on a real slide, tiled and in one run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from histoseg.card import Blend
from histoseg.engine import Plan, iter_bands
from histoseg.grid import Axis, Grid, plan_grid
from histoseg.models import default_model
from histoseg.session import Session, open_session
from histoseg.slide import ScaledSlide, open_slide, plan_scale


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The default model, made to take images of any size."""
    model, path = onnx.load(default_model()), tmp_path_factory.mktemp("any") / "any.onnx"
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim[1:3], ("height", "width"), strict=True):
            dimension.dim_param = name
    (entry,) = model.metadata_props
    card = json.loads(entry.value)
    card["input"]["shape"] = [None, None, None, 3]
    entry.value = json.dumps(card)
    onnx.save(model, path)
    with open_session(path, provider="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def slide(real_svs: Path) -> Iterator[ScaledSlide]:
    with open_slide(real_svs) as file:
        yield ScaledSlide(file, plan_scale(file, 0.5, tolerance=0.05))


def lay_grid(slide: ScaledSlide, session: Session, blend: Blend) -> Grid:
    """A quarter of each tile is shared with its neighbour; plain averaging knows no halo."""
    tiling, size = session.card.tiling, session.card.patch_size_pixels
    return plan_grid(
        slide.m_size, size, overlap=size[0] // 4, halo=0 if blend == "constant" else tiling.halo_px,
        stride_multiple=tiling.stride_multiple, crop=blend == "crop",
    )  # fmt: skip


def run_tiled(slide: ScaledSlide, session: Session, blend: Blend) -> np.ndarray:
    grid = lay_grid(slide, session, blend)
    plan = Plan(grid, np.ones((grid.y.count, grid.x.count), bool), blend, 1, 2)
    return np.concatenate([band.probabilities[..., 1] for band in iter_bands(slide, session, plan)])


@pytest.fixture(scope="module")
def whole(slide: ScaledSlide, session: Session) -> np.ndarray:
    """One run over the whole slide, reflected at its borders as far as the tiles are."""
    (width, height), stride = slide.m_size, session.card.tiling.stride_multiple
    lead = lay_grid(slide, session, "cosine").x.lead
    pads = [(lead, lead + -(lead + side + lead) % stride) for side in (height, width)]
    rgb = np.pad(slide.read(0, 0, width, height), (*pads, (0, 0)), mode="reflect")
    return session.run(rgb[None])[0, lead : lead + height, lead : lead + width, 1]


def seam_energy(columns: np.ndarray, axis: Axis) -> float:
    """Return the mean step across every line where a tile begins or ends."""
    begins = [axis.write_range(index)[0] for index in range(1, axis.count)]
    ends = [axis.write_range(index)[1] for index in range(axis.count - 1)]
    return float(np.mean([np.abs(columns[:, x] - columns[:, x - 1]).mean() for x in begins + ends]))


@pytest.mark.parametrize(("blend", "visible"), [("cosine", False), ("crop", False), ("constant", True)])
def test_tiles_meet_without_a_seam_but_for_plain_averaging(
    slide: ScaledSlide, session: Session, whole: np.ndarray, blend: Blend, *, visible: bool
) -> None:
    grid, tiled = lay_grid(slide, session, blend), run_tiled(slide, session, blend)
    across = seam_energy(tiled, grid.x) / seam_energy(whole, grid.x)
    down = seam_energy(tiled.T, grid.y) / seam_energy(whole.T, grid.y)
    assert (across > 1.05, down > 1.05) == (visible, visible)
    if not visible:
        assert ((tiled > 0.5) != (whole > 0.5)).mean() < 2e-4
