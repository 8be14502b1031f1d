from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import onnxruntime
import pytest

import histoseg
from histoseg.session import PROVIDERS, installed_wheels


@pytest.fixture(scope="module")
def told(default_model_until_present: Path, run_command: Callable) -> str:
    finished = run_command("histoseg-doctor")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    return finished.stdout


def test_it_prints_the_versions_of_what_is_installed(told: str) -> None:
    assert f"histoseg {histoseg.__version__}" in told
    for name in ("numpy", "openslide-python", *installed_wheels()):
        assert any(name in line and metadata.version(name) in line for line in told.splitlines())


def test_every_provider_answers(told: str) -> None:
    offered = onnxruntime.get_available_providers()
    for name, provider in PROVIDERS.items():
        (line,) = [line for line in told.splitlines() if line.startswith(f"provider {name}:")]
        if name == "cpu":
            assert line == "provider cpu: works"
        elif provider.ort_name not in offered:
            assert f"pip install '{provider.requirement}'" in line


def test_it_tries_openslide(told: str) -> None:
    import openslide

    assert f"OpenSlide {openslide.__library_version__}: works" in told


def test_two_wheels_are_the_first_thing_it_finds(run_command: Callable, tmp_path: Path) -> None:
    (wheel,) = installed_wheels()
    other = "onnxruntime-openvino" if wheel != "onnxruntime-openvino" else "onnxruntime"
    info = tmp_path / f"{other.replace('-', '_')}-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {other}\nVersion: 9.9.9\n")
    finished = run_command("histoseg-doctor", env={"PYTHONPATH": str(tmp_path)})
    assert finished.returncode == 1
    assert "side by side" in finished.stdout
    assert "pip uninstall -y" in finished.stdout
    assert "OpenSlide" in finished.stdout  # one fault hides no other


def test_a_package_that_is_missing_is_named_with_its_repair() -> None:
    from histoseg.doctor import _version

    assert _version("no-such-package-anywhere") == (
        "not installed; repair with: pip install no-such-package-anywhere"
    )
