"""Fixtures that every test folder shares: kilobyte models, real files, command lines in a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from histoseg.session import Session

# One fixed profile: no deadline (the machine is shared), the same examples every time.
settings.register_profile(
    "histoseg",
    deadline=None,
    derandomize=True,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("histoseg")

TESTS = Path(__file__).parent
COMMANDS = {
    "histoseg-run": "from histoseg.cli import main; main()",
    "histoseg-doctor": "from histoseg.doctor import main; main()",
}


def command_line(name: str, *arguments: str | Path) -> list[str]:
    """Return the argument list that starts a console script with this very interpreter."""
    return [sys.executable, "-c", COMMANDS[name], *map(str, arguments)]


@pytest.fixture(scope="session")
def start_command() -> Callable[..., list[str]]:
    """`start_command(name, *arguments)` returns an argument list for `subprocess`."""
    return command_line


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_command(name, *arguments)` runs a console script in its own process."""

    def run(
        name: str, *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line(name, *arguments),
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of tiny ONNX models; see `tests/data/make_models.py`."""
    return TESTS / "data"


@pytest.fixture(scope="session")
def open_model(models: Path) -> Iterator[Callable[[str], Session]]:
    """`open_model("conv")` returns one CPU session of a tiny model, shared by the whole run."""
    from histoseg.session import open_session

    opened: dict[str, Session] = {}

    def get(name: str) -> Session:
        if name not in opened:
            opened[name] = open_session(models / f"{name}.onnx", provider="cpu", threads=1)
        return opened[name]

    yield get
    for session in opened.values():
        session.__exit__(None, None, None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real files that are not part of the repository: `$HISTOSEG_SHARED/data` or `../shared/data`."""
    shared = Path(os.environ.get("HISTOSEG_SHARED") or TESTS.parent.parent / "shared")
    if not (shared / "data").is_dir():
        pytest.skip(f"real files are absent: {shared / 'data'} is no folder (set HISTOSEG_SHARED)")
    return shared / "data"


@pytest.fixture(scope="session")
def real_svs(shared_data: Path) -> Path:
    """A real H&E slide: 2220 x 2967 px, one level, 0.499 um/px."""
    return shared_data / "slides" / "cmu-1-small-region.svs"


@pytest.fixture(scope="session")
def default_model_until_present() -> Path:
    """The model that ships with the package. To be tightened: an absent file must fail, not skip."""
    from histoseg.models import default_model

    path = default_model()
    if not path.is_file():
        pytest.skip(f"{path} does not exist yet")
    return path


@pytest.fixture(scope="session")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn H&E slide of 700 x 620 px at 0.5 um/px, two levels, as a tiled JPEG TIFF; and `truth.png`."""
    from histoseg.demo import draw_slide, write_pyramid

    folder = tmp_path_factory.mktemp("small")
    rgb, truth = draw_slide(700, seed=3)
    write_pyramid(folder / "small.tif", np.ascontiguousarray(rgb[:620]), 0.5)
    assert cv2.imwrite(str(folder / "truth.png"), truth[:620] * np.uint8(255))
    return folder / "small.tif"
