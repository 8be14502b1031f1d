from __future__ import annotations

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from histoseg.card import ModelCard, card_to_text
from histoseg.cpu import read_int8_instructions
from histoseg.errors import CardError, ModelError, ProviderError
from histoseg.providers import PROVIDERS, Provider, find_key
from histoseg.session import hash_model, open_session


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
    elsewhere = write_card(
        tmp_path / "elsewhere.json", dataclasses.replace(open_model("threshold").card, spacing_um_px=0.25)
    )
    with open_session(model, provider="cpu", card=elsewhere) as session:
        assert session.card.spacing_um_px == 0.25
    write_card(
        tmp_path / "foreign.json", dataclasses.replace(open_model("threshold").card, spacing_um_px=1.5)
    )
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


@pytest.mark.parametrize(
    ("shape", "layout", "side"),
    [
        ((1, 256, 256, 3), "NHWC", 256),
        ((None, 3, None, None), "NCHW", 64),
        ((1, 3, 128, 128), "NCHW", 128),
    ],
)
def test_a_card_of_the_wrong_sizes_is_refused_before_any_tile_runs(
    tmp_path: Path, shared_data: Path, open_model, shape: tuple[int | None, ...], layout: str, side: int
) -> None:
    model = shared_data / "onnx" / "prisma_nchw.onnx"
    right = foreign_card(
        open_model,
        side=256,
        output={"activation": "sigmoid", "channels": 1},
        names=("input_3", "permute_2"),
    )
    wrong = dataclasses.replace(
        right,
        patch_size_pixels=(side, side),
        input=dataclasses.replace(right.input, shape=shape, layout=layout),
    )
    with pytest.raises(CardError) as caught:
        open_session(model, provider="cpu", card=write_card(tmp_path / "card.json", wrong))
    said = str(caught.value)
    assert f"'input.shape' is {json.dumps(shape)} ({layout}, tiles of {side}x{side} px)" in said
    assert "the model takes [null, 3, 256, 256]" in said
    free = dataclasses.replace(right, input=dataclasses.replace(right.input, shape=(None, 3, None, None)))
    open_session(model, provider="cpu", card=write_card(tmp_path / "card.json", free)).__exit__(
        None, None, None
    )


def test_a_fixed_batch_that_the_card_does_not_state_is_refused(
    tmp_path: Path, models: Path, open_model
) -> None:
    """The run would choose a batch of its own."""
    card = open_model("nchw_float_logits").card
    free = dataclasses.replace(card, input=dataclasses.replace(card.input, shape=(None, 3, None, None)))
    with pytest.raises(CardError, match=r"'input.shape' is \[null, 3.*takes \[1, 3, null, null\]"):
        open_session(
            models / "nchw_float_logits.onnx",
            provider="cpu",
            card=write_card(tmp_path / "card.json", free),
        )


def test_a_model_that_fails_says_so_in_one_line(open_model) -> None:
    with pytest.raises(ModelError, match="onnxruntime failed") as caught:
        open_model("unet").run(noise(1, 33, 33))
    assert "\n" not in str(caught.value)


def test_a_closed_session_says_that_it_is_closed(models: Path) -> None:
    with open_session(models / "conv.onnx", provider="cpu") as session:
        pass
    with pytest.raises((ModelError, ValueError), match="closed"):
        session.run(noise(1, 16, 16))


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


# providers


OFFERED = [find_key(name) for name in onnxruntime.get_available_providers()]


def open_or_skip(model: Path, provider: str, **options: object):
    """Open a model on a provider that is offered, unless the machine lacks what the provider needs."""
    try:
        return open_session(model, provider=provider, **options)
    except ProviderError as error:
        if "cannot be loaded" in str(error) or "none of the" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("name", ["unet", "conv", "nchw_float_logits"])
@pytest.mark.parametrize("provider", OFFERED)
def test_every_provider_gives_what_the_cpu_gives(models: Path, open_model, provider: str, name: str) -> None:
    rgb = noise(1, 64, 64)
    with open_or_skip(models / f"{name}.onnx", provider) as session:
        result = session.run(rgb)
        assert session.placement
        assert session.placement[provider] == sum(session.placement.values())
    np.testing.assert_allclose(result, open_model(name).run(rgb), atol=1e-4)


@pytest.mark.parametrize("provider", OFFERED)
def test_onnxruntime_prints_nothing(models: Path, provider: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Whether a provider works or not: what is missing is said by the error alone."""
    with suppress(ProviderError), open_session(models / "conv.onnx", provider=provider) as session:
        session.run(noise(1, 16, 16))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("provider", OFFERED)
def test_a_result_outlives_the_next_run_and_can_be_written_into(models: Path, provider: str) -> None:
    """The engine blends into it in place."""
    with open_or_skip(models / "unet.onnx", provider) as session:
        first = session.run(noise(1, 32, 32, seed=1))
        kept = first.copy()
        second = session.run(noise(1, 32, 32, seed=2))
        np.testing.assert_array_equal(first, kept)
        assert not np.shares_memory(first, second)
        second[:] = 7
        np.testing.assert_array_equal(session.run(noise(1, 32, 32, seed=1)), kept)


def test_the_placement_counts_the_models_nodes(open_model) -> None:
    """Three convolutions, two ReLUs, three nodes before them and two behind; see make_models.py."""
    assert open_model("conv").placement == {"cpu": 10}


def test_auto_takes_a_provider_that_is_offered(models: Path) -> None:
    with open_session(models / "conv.onnx") as session:
        assert session.provider in OFFERED


def test_onnxruntimes_own_name_is_the_provider_of_ours(models: Path) -> None:
    with open_session(models / "conv.onnx", provider="CPUExecutionProvider") as session:
        assert session.provider == "cpu"
        assert session.run(noise(1, 16, 16)).shape == (1, 16, 16, 2)


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "openvino", "CUDAExecutionProvider"])
def test_a_provider_that_is_not_here_is_refused_with_the_repair(models: Path, name: str) -> None:
    key = find_key(name)
    if key in OFFERED:
        pytest.skip(f"this onnxruntime offers {name}")
    with pytest.raises(ProviderError) as caught:
        open_session(models / "conv.onnx", provider=name)
    message = str(caught.value)
    assert name in message
    assert "cpu" in message  # what there is
    assert f"pip install '{PROVIDERS[key].requirement}'" in message
    assert "histoseg-doctor" in message


needs_azure = pytest.mark.skipif(
    "AzureExecutionProvider" not in OFFERED, reason="this onnxruntime has no provider without kernels"
)


@needs_azure
def test_a_provider_that_gets_no_node_is_refused(models: Path) -> None:
    """onnxruntime itself would take it, and run everything on the CPU."""
    with pytest.raises(
        ProviderError, match=r"runs none of the 10 nodes of conv\.onnx \(10 on cpu\).*--provider cpu"
    ):
        open_session(models / "conv.onnx", provider="AzureExecutionProvider")


@needs_azure
def test_auto_passes_over_what_does_not_work_and_says_so(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(PROVIDERS, "azure", Provider("AzureExecutionProvider", "onnxruntime", "onnxruntime"))
    monkeypatch.setattr("histoseg.providers.AUTO_ORDER", ("azure", "cpu"))
    with open_session(models / "conv.onnx") as session:
        assert session.provider == "cpu"
    assert "provider azure passed over: " in caplog.text


@needs_azure
def test_a_file_that_is_no_model_is_not_blamed_on_the_provider(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match="not an ONNX model"):
        open_session(path, provider="AzureExecutionProvider")


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_precision_that_the_card_does_not_give_to_a_provider_is_refused(
    tmp_path: Path, models: Path, open_model, precision: str
) -> None:
    card = dataclasses.replace(open_model("threshold").card, precision=precision, providers=("tensorrt",))
    path = write_card(tmp_path / "card.json", card)
    with pytest.raises(
        ProviderError, match=rf"in {precision} is not for provider 'cpu', expected one of tensorrt"
    ):
        open_session(models / "no_card.onnx", provider="cpu", card=path)


@pytest.mark.skipif("cuda" not in OFFERED, reason="this onnxruntime has no CUDA")
def test_int8_on_cuda_is_refused_before_a_device_is_looked_for(
    tmp_path: Path, models: Path, open_model
) -> None:
    card = dataclasses.replace(open_model("threshold").card, precision="int8")
    path = write_card(tmp_path / "card.json", card)
    with pytest.raises(ProviderError, match="int8 is not for provider 'cuda'"):
        open_session(models / "no_card.onnx", provider="cuda", card=path)
    with open_session(models / "no_card.onnx", card=path) as session:
        assert session.provider == "cpu"


@pytest.mark.parametrize(
    ("flags", "warned"), [("sse2 avx2", True), ("avx2 avx512_vnni", False), ("avx2 avx_vnni", False)]
)
def test_int8_without_dot_products_is_run_with_a_warning(
    tmp_path: Path, models: Path, open_model, monkeypatch, caplog, flags: str, warned: bool
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr("histoseg.session.read_int8_instructions", partial(read_int8_instructions, tmp_path))
    card = dataclasses.replace(open_model("threshold").card, precision="int8")
    with open_session(
        models / "no_card.onnx", provider="cpu", card=write_card(tmp_path / "c.json", card)
    ) as session:
        assert session.run(noise(1, 8, 8)).shape == (1, 8, 8, 2)
    assert ("VNNI" in caplog.text) == warned


def test_weights_beside_the_model_count_for_its_hash(tmp_path: Path, models: Path) -> None:
    onnx = pytest.importorskip("onnx")
    plain = models / "conv.onnx"
    assert hash_model(plain) == hashlib.sha256(plain.read_bytes()).hexdigest()
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(plain), path, save_as_external_data=True, location="m.data", size_threshold=0)
    before = hash_model(path)
    weights = bytearray((tmp_path / "m.data").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "m.data").write_bytes(weights)
    assert hash_model(path) != before
