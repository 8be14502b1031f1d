from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from histoseg.libraries import (
    DRIVER,
    explain_failure,
    find_missing,
    prepare_libraries,
    shorten,
    suggest_repair,
)

# said by onnxruntime-gpu 1.31.1 on a driver without a device, and on one that is too old
NO_DEVICE = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError; "
    "bool THRW = true] CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=vm ; "
    "file=cuda_execution_provider.cc ; line=355 ; expr=cudaSetDevice(info_.device_id); \n\n"
)
OLD_DRIVER = NO_DEVICE.replace(
    "100: no CUDA-capable device is detected",
    "35: CUDA driver version is insufficient for CUDA runtime version",
)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (NO_DEVICE, "CUDA failure 100: no CUDA-capable device is detected"),
        (OLD_DRIVER, "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"),
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x for the "
            "following indices\n index: 1 Got: 513 Expected: 3\n index: 3 Got: 3 Expected: 513\n Please fix",
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x for the "
            "following indices index: 1 Got: 513 Expected: 3",
        ),
        ("[ONNXRuntimeError] : 1 : FAIL : first\n\n", "[ONNXRuntimeError] : 1 : FAIL : first"),
        ("", ""),
    ],
)
def test_of_an_error_what_matters_is_kept(said: str, kept: str) -> None:
    assert shorten(said) == kept


@pytest.mark.parametrize(
    ("cause", "repair"),
    [
        ("libcuda.so.1", "NVIDIA driver"),
        (shorten(NO_DEVICE), "NVIDIA driver"),
        (shorten(OLD_DRIVER), "NVIDIA driver"),
        ("libnvinfer.so.10", "TensorRT"),
        ("libcudnn.so.9", "'onnxruntime-gpu[cuda,cudnn]'"),
        ("libcublasLt.so.13", "'onnxruntime-gpu[cuda,cudnn]'"),
        ("cuDNN is not available. Install cuDNN", "'onnxruntime-gpu[cuda,cudnn]'"),
        ("CUDA failure 2: out of memory", "--batch"),
    ],
)
def test_each_cause_has_its_repair(cause: str, repair: str) -> None:
    assert repair in suggest_repair("cuda", cause)


def has_driver() -> bool:
    return DRIVER not in find_missing(SimpleNamespace(__file__="/nowhere/__init__.py"), "cuda")


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_a_missing_driver_is_named_with_what_to_do() -> None:
    said = explain_failure(onnxruntime, "cuda")
    assert said.startswith(DRIVER)
    for word in ("cannot be loaded", "nvidia-smi", "--provider cpu"):
        assert word in said
    assert "\n" not in said


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler makes a library that lacks another")
def test_the_library_that_a_provider_lacks_is_named(tmp_path: Path) -> None:
    capi = tmp_path / "capi"
    capi.mkdir()
    lacking = tmp_path / "libhistoseg_lacking.so.7"
    build = ["gcc", "-shared", "-x", "c", os.devnull, "-o"]
    subprocess.run([*build, lacking, f"-Wl,-soname,{lacking.name}"], check=True)
    provider = capi / "libonnxruntime_providers_cuda.so"
    subprocess.run(
        [*build, provider, "-Wl,--no-as-needed", f"-L{tmp_path}", f"-l:{lacking.name}"], check=True
    )
    lacking.unlink()
    ort = SimpleNamespace(__file__=str(tmp_path / "__init__.py"))
    assert lacking.name in find_missing(ort, "cuda")
    said = explain_failure(ort, "cuda")
    assert lacking.name in said
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in said


@pytest.mark.parametrize("provider", ["cpu", "openvino", "CoreMLExecutionProvider"])
def test_others_need_no_nvidia(provider: str) -> None:
    assert find_missing(onnxruntime, provider) == []
    assert "nvidia" not in explain_failure(onnxruntime, provider, "it broke").lower()


def test_a_variable_that_is_set_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with prepare_libraries(onnxruntime, "tensorrt"):
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == "1"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    with prepare_libraries(onnxruntime, "cuda"):
        assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    with prepare_libraries(onnxruntime, "tensorrt"):
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """onnxruntime's preload prints what it did not find."""
    for provider in ("cuda", "tensorrt"):
        with prepare_libraries(onnxruntime, provider):
            explain_failure(onnxruntime, provider)
    assert capfd.readouterr() == ("", "")
