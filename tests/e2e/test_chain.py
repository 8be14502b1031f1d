"""The whole chain as a person runs it: train, export, run, score; each step in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from histoseg.demo import draw_slide, write_demo_slide
from histoseg.session import open_session
from histoseg_train.metadata import read_metadata
from histoseg_train.modelfile import load_model, save_model

BIN = Path(sys.executable).parent


def run(*words: object) -> subprocess.CompletedProcess[str]:
    name, *rest = map(str, words)
    done = subprocess.run([BIN / name, *rest], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Path]:
    """A small U-Net trained on drawn tissue; the same model as `.keras` and as `.h5`, both exported."""
    data = folder / "data"
    for kind in ("images", "masks"):
        (data / kind).mkdir(parents=True)
    for seed in range(6):
        rgb, truth = draw_slide(192, 100 + seed)
        cv2.imwrite(str(data / "images" / f"{seed}.png"), rgb[..., ::-1])
        cv2.imwrite(str(data / "masks" / f"{seed}.png"), truth * np.uint8(255))
    model = folder / "model.keras"
    run("histoseg-train", "fit", data, "-o", model, "--arch", "unet-w4-d2", "--patch", 96, "--epochs", 6,
        "--steps", 40, "--batch", 4, "--learning-rate", 0.01, "--no-color-augmentation", "--classes",
        "background=#ffffff,nucleus=#00a000")  # fmt: skip
    metadata = read_metadata(model)
    assert metadata is not None
    save_model(load_model(model), model.with_suffix(".h5"), metadata)
    exported = {suffix: folder / f"{suffix}.onnx" for suffix in ("keras", "h5")}
    for suffix, target in exported.items():
        run("histoseg-export", model.with_suffix(f".{suffix}"), "-o", target)
    return exported


def test_card_says_what_training_knew(models: dict[str, Path]) -> None:
    with open_session(models["keras"], provider="cpu") as session:
        card = session.card
    assert card.class_names == ("background", "nucleus")
    assert card.spacing_um_px == 0.5
    assert card.parity["label_agreement"] >= 0.9999
    assert card.training["dice"]


def test_keras_and_h5_agree_on_every_pixel(models: dict[str, Path]) -> None:
    rgb, _ = draw_slide(256, 1)
    labels = []
    for path in models.values():
        with open_session(path, provider="cpu") as session:
            width, height = session.card.patch_size_pixels
            labels.append(session.run(rgb[None, :height, :width]).argmax(-1))
    assert (labels[0] == labels[1]).all()
    assert labels[0].any()


def test_run_finds_the_nuclei_of_a_drawn_slide(models: dict[str, Path], folder: Path) -> None:
    slide, truth = write_demo_slide(folder, size=700, seed=3)
    out = folder / "out"
    run("histoseg-run", slide, "-m", models["keras"], "-o", out, "--truth", truth, "--provider", "cpu")
    report = json.loads((out / slide.stem / "report.json").read_text())
    nucleus = report["score"]["classes"][1]
    assert nucleus["name"] == "nucleus"
    assert nucleus["dice"] > 0.5
    labels = tifffile.imread(out / slide.stem / "labels.tif")
    assert labels.shape == (700, 700)
    assert report["classes"][1]["pixels"] == int((labels == 1).sum())
    with openslide.OpenSlide(out / slide.stem / "labels.tif") as pyramid:
        assert pyramid.dimensions == (700, 700)
        assert float(pyramid.properties["openslide.mpp-x"]) == pytest.approx(0.5, rel=1e-4)
