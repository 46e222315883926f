"""SepFormer: the contract, the literal formulation, parameter counts."""

from __future__ import annotations

import pytest
import sepformer_reference as reference
import torch
from contract import SeparatorContract

from espnet2_sepx.layers import transformer
from espnet2_sepx.separators.sepformer import SepFormerSeparator

TINY = {
    "num_blocks": 2,
    "intra_layers": 1,
    "inter_layers": 1,
    "num_heads": 2,
    "ffn_dim": 12,
    "chunk_size": 6,
}


def build(**options) -> SepFormerSeparator:
    return SepFormerSeparator(8, **{**TINY, **options})


def frames(batch: int, count: int) -> torch.Tensor:
    return torch.rand(batch, count, 8, dtype=torch.double)


class Contract(SeparatorContract):
    input_dim = 8

    def mixture(self, batch, frames_):
        return frames(batch, frames_)


class TestOverlapping(Contract):
    def build(self, **options):
        return build(**options)


class TestNotOverlapping(Contract):
    def build(self, **options):
        return build(overlap=0, pad_mode="minimal", num_spk=3, **options)

    num_spk = 3


@pytest.mark.parametrize("count", [2, 6, 9, 20])
def test_equals_the_literal_formulation(monkeypatch, count) -> None:
    monkeypatch.setitem(transformer.GROUP_TOKENS, "cpu", 12)
    model, x = build().double().eval(), frames(1, count)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    expected = reference.sepformer(model, x[0])
    for graph in (True, False):
        with torch.set_grad_enabled(graph):
            others = model(x, torch.tensor([count]))[2]
        for n, mask in enumerate(expected, 1):
            torch.testing.assert_close(others[f"mask_spk{n}"][0], mask, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dim", "ffn_dim", "parameters"), [(256, 1024, 25_679_361), (128, 512, 6_449_921)]
)
def test_parameters_of_the_paper(dim, ffn_dim, parameters) -> None:
    model = SepFormerSeparator(dim, ffn_dim=ffn_dim)
    coder = 2 * 16 * dim
    assert sum(p.numel() for p in model.parameters()) + coder == parameters


def test_gain_does_not_matter_and_silence_stays_silent() -> None:
    model, x = build().double().eval(), frames(1, 9)
    lengths = torch.tensor([9])
    for y, z in zip(model(x, lengths)[0], model(1000 * x, lengths)[0], strict=True):
        torch.testing.assert_close(1000 * y, z, rtol=1e-4, atol=1e-4)
    assert all(y.abs().max() == 0 for y in model(0 * x, lengths)[0])


def test_noise_has_a_mask_of_its_own() -> None:
    outputs, _, others = build(predict_noise=True)(frames(1, 9).float(), torch.tensor([9]))
    assert len(outputs) == 2
    assert others["noise1"].shape == outputs[0].shape


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_spk": 0}, "num_spk"),
        ({"inter_layers": 0}, "inter_layers"),
        ({"chunk_size": 5}, "chunk_size"),
        ({"overlap": 0.75}, "overlap"),
        ({"num_heads": 3}, "num_heads"),
        ({"nonlinear": "x"}, "nonlinear"),
        ({"dropout": -0.1}, "dropout"),
    ],
)
def test_bad_values_are_named(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        build(**options)
