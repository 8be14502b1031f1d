from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import onnxruntime
import pytest

import histoseg
from histoseg.cpu import count_cpus, explain_int8, read_int8_instructions
from histoseg.models import choose_default_model
from histoseg.providers import PROVIDERS, find_key, installed_wheels


@pytest.fixture(scope="module")
def told(run_command: Callable) -> list[str]:
    finished = run_command("histoseg-doctor")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stderr == ""
    return finished.stdout.splitlines()


def find_line(told: list[str], start: str) -> str:
    (line,) = [line for line in told if line.startswith(start)]
    return line


def test_it_prints_the_versions_of_what_is_installed(told: list[str]) -> None:
    assert told[0].startswith(f"histoseg {histoseg.__version__}, Python")
    packages = {each.metadata["Name"] for each in metadata.distributions()}
    optional = {"pydicom", "highdicom", "distributed"}
    assert not [line for line in told if line.split()[0] in optional - packages]
    usual = ("numpy", "opencv-python-headless", "openslide-python")
    for name in (*usual, *installed_wheels(), *(optional & packages)):
        assert metadata.version(name) in find_line(told, f"  {name} ")


def test_it_describes_the_processor(told: list[str]) -> None:
    assert find_line(told, "CPUs").endswith(f": {count_cpus()}")
    assert find_line(told, "int8").endswith(explain_int8(read_int8_instructions()))


def test_every_provider_answers(told: list[str]) -> None:
    offered = [find_key(name) for name in onnxruntime.get_available_providers()]
    for name, provider in PROVIDERS.items():
        line = find_line(told, f"provider {name}:")
        if name not in offered:
            assert f"to have it: pip uninstall -y {next(iter(installed_wheels()))} && " in line
            assert line.endswith(f"pip install '{provider.requirement}'")
        else:
            assert "works, ran a convolution" in line or "FAILS" in line
    assert find_line(told, "provider cpu:") == "provider cpu: works, ran a convolution"


def test_it_tries_openslide_and_the_default_model(told: list[str]) -> None:
    import openslide

    assert find_line(told, "OpenSlide") == f"OpenSlide {openslide.__library_version__}: works, read a slide"
    line = find_line(told, f"model {choose_default_model('cpu').name} on ")
    assert "works" in line
    assert " nodes on " in line
    assert told[-1] == "healthy"


def write_package(folder: Path, name: str) -> None:
    info = folder / f"{name.replace('-', '_')}-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9.9\n")


def test_two_wheels_are_a_fault_that_hides_no_other(run_command: Callable, tmp_path: Path) -> None:
    (wheel,) = installed_wheels()
    write_package(tmp_path, "onnxruntime-openvino" if wheel != "onnxruntime-openvino" else "onnxruntime")
    finished = run_command("histoseg-doctor", env={"PYTHONPATH": str(tmp_path)})
    assert finished.returncode == 1
    line = find_line(finished.stdout.splitlines(), "onnxruntime: FAILS")
    assert "side by side" in line
    assert "pip uninstall -y" in line
    assert "OpenSlide" in finished.stdout
    assert finished.stdout.splitlines()[-1].startswith("NOT healthy")


def test_opencv_with_windows_beside_headless_is_told_but_runs(run_command: Callable, tmp_path: Path) -> None:
    write_package(tmp_path, "opencv-python")
    finished = run_command("histoseg-doctor", env={"PYTHONPATH": str(tmp_path)})
    assert finished.returncode == 0
    assert (
        "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless"
        in finished.stdout
    )


@pytest.mark.parametrize(
    ("module", "start", "repair"),
    [
        ("openslide", "OpenSlide: FAILS", "pip install --force-reinstall openslide-bin"),
        ("cv2", "OpenCV: FAILS", "pip install opencv-python-headless"),
        ("onnxruntime", "onnxruntime: FAILS", "pip install --force-reinstall onnxruntime"),
    ],
)
def test_what_does_not_load_is_a_fault_with_its_repair(
    tmp_path: Path, module: str, start: str, repair: str
) -> None:
    (tmp_path / f"{module}.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    finished = subprocess.run(
        [sys.executable, "-c", "from histoseg.doctor import main; main()"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    line = find_line(finished.stdout.splitlines(), start)
    assert "libGL.so.1" in line
    assert repair in line


def test_a_package_that_is_missing_is_named_with_its_repair() -> None:
    from histoseg.doctor import _version

    assert _version("no-such-package-anywhere") == (
        "not installed; repair with: pip install no-such-package-anywhere"
    )
