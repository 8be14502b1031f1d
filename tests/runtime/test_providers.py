from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import onnxruntime
import pytest

from histoseg.errors import ProviderError
from histoseg.providers import (
    PROVIDERS,
    choose_providers,
    find_install,
    find_key,
    installed_wheels,
    known_provider,
    list_arguments,
    require_suited,
)


def test_known_providers_are_ours_and_onnxruntimes() -> None:
    assert all(map(known_provider, ["auto", *PROVIDERS, *onnxruntime.get_all_providers()]))
    assert not known_provider("abacus")


def test_our_names_are_those_of_real_providers() -> None:
    names = {provider.ort_name for provider in PROVIDERS.values()}
    assert names <= set(onnxruntime.get_all_providers())
    assert [find_key(provider.ort_name) for provider in PROVIDERS.values()] == list(PROVIDERS)


def test_auto_resolves_to_what_is_offered_and_ends_with_the_cpu() -> None:
    offered = onnxruntime.get_available_providers()
    chosen = choose_providers("auto")
    assert chosen[-1] == "cpu"
    assert all(PROVIDERS[name].ort_name in offered for name in chosen)
    assert "tensorrt" not in chosen  # its engines take minutes to build: only when asked for


# options


def options_of(provider: str, precision: str = "fp32", threads: int = 3) -> dict[str, str]:
    (name, options), *_ = list_arguments(provider, precision, threads)
    assert name == PROVIDERS[provider].ort_name
    return options


def test_no_provider_runs_fp32_in_less_unasked() -> None:
    assert options_of("cuda")["use_tf32"] == "0"
    assert ("NVIDIA_TF32_OVERRIDE", "0") in PROVIDERS["tensorrt"].environment
    assert not {"trt_fp16_enable", "trt_int8_enable", "trt_bf16_enable"} & set(options_of("tensorrt"))
    config = json.loads(options_of("openvino")["load_config"])["CPU"]
    assert config["INFERENCE_PRECISION_HINT"] == "f32"
    assert config["EXECUTION_MODE_HINT"] == "ACCURACY"


def test_openvino_gets_as_many_threads_as_it_may_use() -> None:
    config = json.loads(options_of("openvino", threads=5)["load_config"])["CPU"]
    assert config["INFERENCE_NUM_THREADS"] == "5"


def test_tensorrt_is_told_the_precision_writes_nothing_and_leaves_the_rest_to_cuda() -> None:
    assert options_of("tensorrt", "fp16")["trt_fp16_enable"] == "True"
    assert options_of("tensorrt", "int8")["trt_int8_enable"] == "True"
    assert options_of("tensorrt")["trt_engine_cache_enable"] == "False"
    names = [name for name, _ in list_arguments("tensorrt", "fp16", 1)]
    assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    assert list_arguments("tensorrt", "fp16", 1)[1:] == list_arguments("cuda", "fp16", 1)


def test_a_provider_that_is_not_ours_gets_no_options() -> None:
    assert list_arguments("CoreMLExecutionProvider", "fp32", 2) == [("CoreMLExecutionProvider", {})]


# precision


@pytest.mark.parametrize("provider", [*PROVIDERS, "CoreMLExecutionProvider"])
def test_fp32_suits_every_provider(open_model, provider: str) -> None:
    require_suited(provider, open_model("threshold").card, "m.onnx")


@pytest.mark.parametrize("claimed", [("cuda",), ("cpu", "cuda", "openvino", "tensorrt")])
def test_int8_on_cuda_is_refused_whatever_the_card_claims(open_model, claimed: tuple[str, ...]) -> None:
    card = dataclasses.replace(open_model("threshold").card, precision="int8", providers=claimed)
    with pytest.raises(ProviderError) as caught:
        require_suited("cuda", card, "m.onnx")
    said = str(caught.value)
    for word in ("m.onnx", "int8", "'cuda'", "no int8 convolutions", "cpu", "openvino", "tensorrt"):
        assert word in said
    assert "expected one of cuda" not in said


def test_what_a_card_does_not_name_is_refused(open_model) -> None:
    card = dataclasses.replace(open_model("threshold").card, precision="fp16", providers=("cuda", "tensorrt"))
    for provider in ("cuda", "tensorrt"):
        require_suited(provider, card, "m.onnx")
    for provider in ("cpu", "openvino"):
        with pytest.raises(
            ProviderError, match=f"fp16 is not for provider '{provider}', expected one of cuda, t"
        ):
            require_suited(provider, card, "m.onnx")


# wheels


def test_installed_wheels_have_their_versions() -> None:
    assert installed_wheels()
    for wheel, version in installed_wheels().items():
        assert metadata.version(wheel) == version


def test_an_install_removes_the_wheel_that_would_clash() -> None:
    (wheel,) = installed_wheels()
    for name, provider in PROVIDERS.items():
        line = find_install(name)
        assert line.endswith(f"pip install '{provider.requirement}'")
        assert (f"pip uninstall -y {wheel} && " in line) == (wheel != provider.wheel)


OPEN = """
from histoseg.session import open_session
from histoseg.errors import ProviderError
try:
    open_session({model!r})
except ProviderError as error:
    print(error)
"""


def say_with(folder: Path, models: Path) -> str:
    """Return what `open_session` says where `folder` comes first on Python's path."""
    finished = subprocess.run(
        [sys.executable, "-c", OPEN.format(model=str(models / "conv.onnx"))],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.count("\n") == 1
    return finished.stdout


def test_two_wheels_side_by_side_are_refused_with_the_repair(tmp_path: Path, models: Path) -> None:
    (wheel,) = installed_wheels()
    other = "onnxruntime-gpu" if wheel != "onnxruntime-gpu" else "onnxruntime"
    info = tmp_path / f"{other.replace('-', '_')}-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {other}\nVersion: 9.9.9\n")
    said = say_with(tmp_path, models)
    assert "side by side" in said
    repair = said.partition("pip uninstall -y ")[2]
    assert wheel in repair
    assert other in repair
    assert "pip install onnxruntime" in repair


@pytest.mark.parametrize("content", ["", "raise ImportError('libfoo.so is missing')"])
def test_a_hollow_onnxruntime_is_refused_with_the_repair(tmp_path: Path, models: Path, content: str) -> None:
    """What `pip uninstall` of one of two wheels leaves behind can still be imported."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(content)
    said = say_with(tmp_path, models)
    assert "onnxruntime cannot be used" in said
    assert ("libfoo.so is missing" if content else "InferenceSession") in said
    assert "pip install --force-reinstall onnxruntime" in said
