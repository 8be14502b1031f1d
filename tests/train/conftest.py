from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from histoseg_train.architectures import UnetOptions
from histoseg_train.dataset import find_dataset
from histoseg_train.job import Job, Target, open_store


def pytest_configure(config: pytest.Config) -> None:
    # of Keras with NumPy 2.4, on every conversion of a tensor
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation:DeprecationWarning")


REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    root = Path(os.environ.get("HISTOSEG_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not root.is_dir():
        pytest.skip(f"{root} is absent; set HISTOSEG_SHARED to the folder that holds data/")
    return root


def draw_blobs(rng: np.random.Generator, size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a pale image with dark discs, and the discs as 0 and 255."""
    mask = np.zeros((size, size), np.uint8)
    for _ in range(6):
        center = [int(v) for v in rng.integers(8, size - 8, 2)]
        cv2.circle(mask, center, int(rng.integers(4, 8)), 255, -1)
    rgb = np.where(mask[..., None] > 0, (110, 60, 150), (230, 190, 215)) + rng.normal(0, 6, (size, size, 3))
    return np.clip(rgb, 0, 255).astype(np.uint8), mask


def write_pair(folder: Path, stem: str, rgb: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    for kind, pixels in (("images", rgb[..., ::-1]), ("masks", mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / kind / f"{stem}.png"), pixels)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(images: int = 4, *, name: str = "data", seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        for index in range(images):
            write_pair(tmp_path / name, f"im{index}", *draw_blobs(rng))
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def target() -> Target:
    return Target(("background", "nucleus"), ("#ffffff", "#00a000"), 0.5)


@pytest.fixture
def make_job(make_folder: Callable[..., Path], target: Target) -> Callable[..., Job]:
    """`make_job(images, validation=0.25, **options)` returns a job for the smallest network."""

    def make(images: int = 4, *, validation: float = 0.25, **options: Any) -> Job:
        dataset = find_dataset(make_folder(images), validation=validation)
        training, held_out = open_store(dataset.training, target), open_store(dataset.held_out, target)
        return Job(dataset, training, held_out, target, UnetOptions(width=2, depth=1), **options)

    return make
