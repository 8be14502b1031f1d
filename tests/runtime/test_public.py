from __future__ import annotations

import subprocess
import sys

import pytest

import histoseg
from histoseg import errors

HEAVY = ("onnxruntime", "cv2", "openslide", "tifffile", "rich", "tensorflow", "keras", "onnx")
SHOW = "import sys; print(*[name for name in {heavy!r} if name in sys.modules])"


def loaded_after(code: str) -> list[str]:
    """Return which heavy modules a fresh interpreter has loaded after running `code`."""
    finished = subprocess.run(
        [sys.executable, "-c", f"{code}\n{SHOW.format(heavy=HEAVY)}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.splitlines()[-1].split()


def test_at_most_eight_names_are_public_and_all_resolve() -> None:
    assert len(histoseg.__all__) <= 8
    assert {"Segmenter", "LiveSlide", "RunOptions", "open_slide"} < set(histoseg.__all__)
    assert sorted(histoseg.__all__) == sorted(set(histoseg.__all__))
    for name in histoseg.__all__:
        assert getattr(histoseg, name) is not None
    assert set(histoseg._ROOMS) | {"__version__"} == set(histoseg.__all__)


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = histoseg.nonsense


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import histoseg") == []


HELP = """
import sys
from histoseg.{module} import main
sys.argv = ['x', '--help']
try:
    main()
except SystemExit as done:
    assert done.code == 0
"""


@pytest.mark.parametrize("module", ["cli", "doctor"])
def test_help_loads_nothing_heavy(module: str) -> None:
    assert loaded_after(HELP.format(module=module)) == []


def test_the_value_rooms_need_numpy_alone() -> None:
    rooms = (
        "card",
        "grid",
        "blend",
        "errors",
        "jsonclass",
        "score",
        "timing",
        "transform",
        "tissue",
        "truth",
        "slide",
        "live",
        "segmenter",
    )
    assert loaded_after("import " + ", ".join(f"histoseg.{room}" for room in rooms)) == []


def test_the_runtime_knows_neither_keras_nor_onnx() -> None:
    assert not {"keras", "tensorflow", "onnx"} & set(
        loaded_after("import histoseg.cli, histoseg.job, histoseg.demo")
    )


@pytest.mark.parametrize("name", [n for n in vars(errors) if n.endswith("Error")])
def test_each_error_is_histosegs_and_a_standard_one(name: str) -> None:
    error = getattr(errors, name)
    assert issubclass(error, errors.HistosegError)
    if error is not errors.HistosegError:
        assert issubclass(error, (ValueError, RuntimeError, OSError, AssertionError))
        assert str(error("what was found")) == "what was found"
