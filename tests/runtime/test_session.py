from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.card import ModelCard, card_to_text
from histoseg.errors import CardError, ModelError, ProviderError
from histoseg.session import (
    PROVIDERS,
    choose_providers,
    count_cpus,
    installed_wheels,
    known_provider,
    open_session,
    prepare_input,
    read_output,
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_the_cards_model_runs(open_model) -> None:
    rgb = noise(2, 30, 40)
    result = open_model("threshold").run(rgb)
    nucleus = 1 / (1 + np.exp(-20 * (0.6 - rgb.mean(axis=-1) / 255)))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.stack([1 - nucleus, nucleus], axis=-1), atol=1e-5)


def test_a_session_knows_its_model(open_model, models: Path) -> None:
    session = open_model("conv")
    assert session.name == "conv.onnx"
    assert session.sha256 == hashlib.sha256((models / "conv.onnx").read_bytes()).hexdigest()
    assert session.provider == "cpu"
    assert session.card.tiling.halo_px == 3
    assert session.batch_size is None


def test_a_foreign_float_nchw_logits_model_equals_its_nhwc_reference(open_model, models: Path) -> None:
    rgb = noise(1, 31, 45)
    raw = onnxruntime.InferenceSession(models / "nchw_float_logits.onnx", providers=["CPUExecutionProvider"])
    planes = np.ascontiguousarray((rgb / 255).astype(np.float32).transpose(0, 3, 1, 2))
    logits = raw.run(None, {"planes": planes})[0].transpose(0, 2, 3, 1).astype(float)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    session = open_model("nchw_float_logits")
    assert session.batch_size == 1
    result = session.run(rgb)
    assert result.shape == (1, 31, 45, 2)
    np.testing.assert_allclose(result, powers / powers.sum(axis=-1, keepdims=True), atol=1e-5)


def test_one_session_serves_many_threads(open_model) -> None:
    session = open_model("unet")
    batches = [noise(1, 64, 64, seed=seed) for seed in range(20)]
    alone = [session.run(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for got, expected in zip(pool.map(session.run, batches), alone, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_threads_change_no_byte(models: Path) -> None:
    rgb = noise(2, 96, 96)
    results = []
    for threads in (1, 2, 4):
        with open_session(models / "unet.onnx", provider="cpu", threads=threads) as session:
            results.append(session.run(rgb).tobytes())
    assert len(set(results)) == 1


# what a card says is done


def card_of(open_model, **changes: object) -> ModelCard:
    return dataclasses.replace(open_model("threshold").card, **changes)


def test_channel_order_layout_and_dtype_are_the_cards(open_model) -> None:
    rgb = noise(2, 5, 7)
    plain = open_model("threshold").card.input
    for layout in ("NHWC", "NCHW"):
        for order in ("RGB", "BGR"):
            for dtype in ("uint8", "float32", "float16"):
                shape = (None, None, None, 3) if layout == "NHWC" else (None, 3, None, None)
                spec = dataclasses.replace(
                    plain, layout=layout, channel_order=order, dtype=dtype, shape=shape
                )
                tensor = prepare_input(rgb, card_of(open_model, input=spec))
                assert tensor.dtype == dtype
                assert tensor.flags.c_contiguous
                back = tensor if layout == "NHWC" else tensor.transpose(0, 2, 3, 1)
                np.testing.assert_array_equal(back[..., ::-1] if order == "BGR" else back, rgb)


outputs = hnp.arrays(np.float32, (2, 3, 4, 2), elements=st.floats(-50, 50, width=32))


@given(outputs)
def test_logits_become_probabilities(open_model, raw: np.ndarray) -> None:
    spec = dataclasses.replace(open_model("threshold").card.output, activation="logits")
    both = read_output(raw, card_of(open_model, output=spec), (2, 3, 4))
    np.testing.assert_allclose(both.sum(axis=-1), 1, atol=1e-5)
    apart = np.abs(raw[..., 1] - raw[..., 0]) > 1e-3
    assert ((both[..., 1] > both[..., 0]) == (raw[..., 1] > raw[..., 0]))[apart].all()
    single = dataclasses.replace(spec, channels=1)
    one = read_output(raw[..., :1], card_of(open_model, output=single), (2, 3, 4))
    expected = 1 / (1 + np.exp(-raw[..., 0].astype(float)))
    np.testing.assert_allclose(one[..., 1], expected, atol=1e-5)
    np.testing.assert_allclose(one[..., 0], 1 - expected, atol=1e-5)


def test_one_sigmoid_channel_is_the_second_class(open_model) -> None:
    spec = dataclasses.replace(
        open_model("threshold").card.output, activation="sigmoid", channels=1, layout="NCHW"
    )
    raw = np.random.default_rng(0).random((2, 1, 5, 6), np.float32)
    result = read_output(raw, card_of(open_model, output=spec), (2, 5, 6))
    np.testing.assert_array_equal(result[..., 1], raw[:, 0])
    np.testing.assert_allclose(result.sum(axis=-1), 1)


@pytest.mark.parametrize("shape", [(2, 3, 4, 3), (2, 4, 3, 2), (1, 3, 4, 2), (2, 3, 4), ()])
def test_an_output_of_another_shape_is_refused(open_model, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"expected \(2, 3, 4, 2\)"):
        read_output(np.zeros(shape, np.float32), open_model("threshold").card, (2, 3, 4))


# refusals


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.onnx: no such model file"):
        open_session(tmp_path / "nothing.onnx")


def test_a_model_without_a_card_is_refused_with_both_repairs(models: Path) -> None:
    with pytest.raises(ModelError) as caught:
        open_session(models / "no_card.onnx", provider="cpu")
    for word in ("no_card.onnx", "no_card.json", "histoseg-export", "--card"):
        assert word in str(caught.value)


def test_a_bad_card_is_refused_with_the_model_and_the_field(models: Path) -> None:
    with pytest.raises(CardError, match=r"bad_card\.onnx.*'spacing_um_px' is -1"):
        open_session(models / "bad_card.onnx", provider="cpu")


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08" + bytes(200)])
def test_something_else_than_a_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx: not an ONNX model") as caught:
        open_session(path, provider="cpu")
    assert "\n" not in str(caught.value)


def test_a_real_models_truncated_file_is_refused(tmp_path: Path, shared_data: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes((shared_data / "onnx" / "prisma_nchw.onnx").read_bytes()[:500_000])
    with pytest.raises(ModelError, match=r"half\.onnx"):
        open_session(path, provider="cpu")


def write_card(path: Path, card: ModelCard) -> Path:
    path.write_text(card_to_text(card), encoding="utf-8")
    return path


def test_a_sidecar_beside_the_model_and_one_given_by_name_both_serve(
    tmp_path: Path, models: Path, open_model
) -> None:
    model = tmp_path / "foreign.onnx"
    model.write_bytes((models / "no_card.onnx").read_bytes())
    elsewhere = write_card(tmp_path / "elsewhere.json", card_of(open_model, spacing_um_px=0.25))
    with open_session(model, provider="cpu", card=elsewhere) as session:
        assert session.card.spacing_um_px == 0.25
    write_card(tmp_path / "foreign.json", card_of(open_model, spacing_um_px=1.5))
    with open_session(model, provider="cpu") as session:
        assert session.card.spacing_um_px == 1.5


def test_a_card_of_the_wrong_names_is_refused(tmp_path: Path, models: Path, open_model) -> None:
    card = open_model("threshold").card
    wrong_input = dataclasses.replace(card, input=dataclasses.replace(card.input, name="x"))
    wrong_output = dataclasses.replace(card, output=dataclasses.replace(card.output, name="y"))
    for wrong, said in [
        (wrong_input, "'input.name' is 'x', expected image"),
        (wrong_output, "'output.name' is 'y', expected one of probabilities"),
    ]:
        path = write_card(tmp_path / "card.json", wrong)
        with pytest.raises(CardError, match=said):
            open_session(models / "no_card.onnx", provider="cpu", card=path)


def test_a_card_of_the_wrong_dtype_or_channels_is_refused_before_any_tile_runs(
    tmp_path: Path, models: Path, open_model
) -> None:
    """`open_session` promises a CardError when the card does not fit the model."""
    card = open_model("threshold").card
    wrong = dataclasses.replace(card, input=dataclasses.replace(card.input, dtype="float32"))
    with pytest.raises(CardError, match=r"input\.dtype"):
        open_session(models / "no_card.onnx", provider="cpu", card=write_card(tmp_path / "card.json", wrong))


def test_a_model_that_fails_says_so_in_one_line(open_model) -> None:
    with pytest.raises(ModelError, match="onnxruntime failed") as caught:
        open_model("unet").run(noise(1, 33, 33))
    assert "\n" not in str(caught.value)


def test_a_closed_session_says_that_it_is_closed(models: Path) -> None:
    with open_session(models / "conv.onnx", provider="cpu") as session:
        pass
    with pytest.raises((ModelError, ValueError), match="closed"):
        session.run(noise(1, 16, 16))


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "openvino", "CUDAExecutionProvider"])
def test_a_provider_that_is_not_here_is_refused_with_the_repair(models: Path, name: str) -> None:
    offered = onnxruntime.get_available_providers()
    ort_name = PROVIDERS[name].ort_name if name in PROVIDERS else name
    if ort_name in offered:
        pytest.skip(f"this onnxruntime offers {name}")
    with pytest.raises(ProviderError) as caught:
        open_session(models / "conv.onnx", provider=name)
    message = str(caught.value)
    assert name in message
    assert "CPUExecutionProvider" in message  # what there is
    if name in PROVIDERS:
        assert f"pip install '{PROVIDERS[name].requirement}'" in message
    assert "histoseg-doctor" in message


def test_a_repair_removes_the_wheel_that_would_clash() -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("nothing to repair")
    (wheel,) = installed_wheels()
    with pytest.raises(ProviderError, match=f"pip uninstall -y {wheel} && pip install"):
        choose_providers("cuda")


def test_auto_takes_a_provider_that_is_offered(models: Path) -> None:
    with open_session(models / "conv.onnx") as session:
        assert session.provider in PROVIDERS
        assert PROVIDERS[session.provider].ort_name in onnxruntime.get_available_providers()


def test_onnxruntimes_own_names_serve_too(models: Path) -> None:
    with open_session(models / "conv.onnx", provider="CPUExecutionProvider") as session:
        assert session.run(noise(1, 16, 16)).shape == (1, 16, 16, 2)


def test_known_providers_are_ours_and_onnxruntimes() -> None:
    assert all(map(known_provider, ["auto", *PROVIDERS, *onnxruntime.get_all_providers()]))
    assert not known_provider("abacus")


TWO_WHEELS = """
from histoseg.session import open_session
from histoseg.errors import ProviderError
try:
    open_session({model!r})
except ProviderError as error:
    print(error)
"""


def fake_wheel(folder: Path, name: str) -> None:
    info = folder / f"{name.replace('-', '_')}-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9.9\n")


def test_two_wheels_side_by_side_are_refused_with_the_repair(tmp_path: Path, models: Path) -> None:
    (wheel,) = installed_wheels()
    other = "onnxruntime-gpu" if wheel != "onnxruntime-gpu" else "onnxruntime"
    fake_wheel(tmp_path, other)
    finished = subprocess.run(
        [sys.executable, "-c", TWO_WHEELS.format(model=str(models / "conv.onnx"))],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "side by side" in finished.stdout
    repair = finished.stdout.partition("pip uninstall -y ")[2]
    assert wheel in repair
    assert other in repair
    assert "pip install onnxruntime" in repair
    assert finished.stdout.count("\n") == 1


def test_installed_wheels_have_their_versions() -> None:
    for wheel, version in installed_wheels().items():
        assert metadata.version(wheel) == version


def test_cpus_are_those_this_process_may_use() -> None:
    assert 1 <= count_cpus() <= (os.cpu_count() or 1)
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "import histoseg.session as s; print(s.count_cpus())"
    )
    if hasattr(os, "sched_setaffinity"):
        assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"


def foreign_card(open_model, *, side: int, output: dict[str, object], names: tuple[str, str]) -> ModelCard:
    card = open_model("threshold").card
    return dataclasses.replace(
        card,
        patch_size_pixels=(side, side),
        input=dataclasses.replace(
            card.input, name=names[0], layout="NCHW", dtype="float32", shape=(1, 3, side, side)
        ),
        output=dataclasses.replace(card.output, name=names[1], layout="NCHW", **output),
        transform=(dataclasses.replace(open_model("nchw_float_logits").card.transform[0]),),
        tiling=dataclasses.replace(card.tiling, stride_multiple=1, halo_px=8, overlap_px=32),
    )


@pytest.mark.parametrize(
    ("name", "side", "output"),
    [
        ("deeplab_nchw", 513, {"activation": "logits", "channels": 2}),
        ("prisma_nchw", 256, {"activation": "sigmoid", "channels": 1}),
    ],
)
def test_third_party_models_run_with_a_sidecar(
    tmp_path: Path, shared_data: Path, open_model, name: str, side: int, output: dict[str, object]
) -> None:
    model = shared_data / "onnx" / f"{name}.onnx"
    raw = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = (raw.get_inputs()[0].name, raw.get_outputs()[0].name)
    card = foreign_card(open_model, side=side, output=output, names=names)
    rgb = noise(1, side, side)
    with open_session(model, provider="cpu", card=write_card(tmp_path / "c.json", card)) as session:
        result = session.run(rgb)
    assert result.shape == (1, side, side, 2)
    np.testing.assert_allclose(result.sum(axis=-1), 1, atol=1e-5)
    assert result.std() > 0


def test_auto_passes_over_what_the_models_precision_does_not_suit(
    tmp_path: Path, models: Path, open_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both names lead to the CPU here, so that only the card can tell them apart."""
    card = dataclasses.replace(open_model("threshold").card, precision="int8", providers=("cpu",))
    path = write_card(tmp_path / "card.json", card)
    monkeypatch.setitem(PROVIDERS, "cuda", PROVIDERS["cpu"])
    with open_session(models / "no_card.onnx", provider="auto", card=path) as session:
        assert session.provider == "cpu"
    with pytest.raises(ProviderError, match=r"int8 is not for provider 'cuda'.*one of cpu"):
        open_session(models / "no_card.onnx", provider="cuda", card=path)


def test_onnxruntimes_own_name_is_the_provider_of_ours(models: Path) -> None:
    with open_session(models / "conv.onnx", provider="CPUExecutionProvider") as session:
        assert session.provider == "cpu"


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"PK\x03\x04", "histoseg-export"),
        (b"\x89HDF\r\n", "histoseg-export"),
        (b"version https://git-lfs", "lfs pull"),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path: Path, head: bytes, said: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(head + bytes(64))
    with pytest.raises(ModelError, match=said):
        open_session(path, provider="cpu")


@pytest.mark.parametrize("values", [[np.nan, 0.5], [-3.0, 4.0], [0.0, np.inf]])
def test_an_output_that_is_no_probability_is_refused(open_model, values: list[float]) -> None:
    card = open_model("threshold").card
    raw = np.broadcast_to(np.float32(values), (1, 2, 2, 2))
    with pytest.raises(ModelError, match="expected probabilities"):
        read_output(raw, card, (1, 2, 2))
