from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histoseg.card import ModelCard
from histoseg.errors import ModelError
from histoseg.tensors import prepare_input, read_output, shape_output


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


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


@pytest.mark.parametrize("values", [[np.nan, 0.5], [-3.0, 4.0], [0.0, np.inf]])
def test_an_output_that_is_no_probability_is_refused(open_model, values: list[float]) -> None:
    card = open_model("threshold").card
    raw = np.broadcast_to(np.float32(values), (1, 2, 2, 2))
    with pytest.raises(ModelError, match="expected probabilities"):
        read_output(raw, card, (1, 2, 2))


@pytest.mark.parametrize("input_layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("output_layout", ["NHWC", "NCHW"])
def test_the_outputs_shape_follows_from_the_inputs(open_model, input_layout: str, output_layout: str) -> None:
    card = open_model("threshold").card
    shape = (None, None, None, 3) if input_layout == "NHWC" else (None, 3, None, None)
    card = dataclasses.replace(
        card,
        input=dataclasses.replace(card.input, layout=input_layout, shape=shape),
        output=dataclasses.replace(card.output, layout=output_layout),
    )
    tensor = prepare_input(noise(5, 7, 11), card)
    foreseen = shape_output(card, tensor.shape)
    assert foreseen == ((5, 7, 11, 2) if output_layout == "NHWC" else (5, 2, 7, 11))
    assert read_output(np.zeros(foreseen, np.float32), card, (5, 7, 11)).shape == (5, 7, 11, 2)
