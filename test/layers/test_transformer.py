"""Transformer layers: torch's own as oracle, the in-place path, and who attends to whom."""

from __future__ import annotations

import pytest
import torch

from espnet2_sepx.layers import transformer
from espnet2_sepx.layers.transformer import Span, TransformerStack, attend, sinusoids


def stack(layers: int = 2, dtype: torch.dtype = torch.double) -> TransformerStack:
    model = TransformerStack(layers, 8, 2, 12).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def torchs_own(ours: TransformerStack) -> torch.nn.TransformerEncoder:
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 12, 0.0, layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    theirs = torch.nn.TransformerEncoder(
        layer, len(ours.layers), torch.nn.LayerNorm(8, 1e-6), enable_nested_tensor=False
    ).double()
    names = {
        "attention.qkv.weight": "self_attn.in_proj_weight",
        "attention.qkv.bias": "self_attn.in_proj_bias",
        "attention.out": "self_attn.out_proj",
        "ffn.": "",
    }
    state = {}
    for key, value in ours.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        state[key] = value
    theirs.load_state_dict(state)
    return theirs.eval()


def causal_mask(n: int, window: int) -> torch.Tensor:
    """True where a query must not look, as torch's layers have it."""
    distance = torch.arange(n)[:, None] - torch.arange(n)
    return (distance < 0) | (distance >= window)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize(
    ("span", "mask", "padding"),
    [
        (Span(), None, None),
        (Span(causal=True), causal_mask(9, 99), None),
        (Span(causal=True, window=3), causal_mask(9, 3), None),
        (Span(lengths=(9, 5, 1)), None, torch.arange(9) >= torch.tensor([[9], [5], [1]])),
    ],
    ids=["all", "causal", "window", "lengths"],
)
def test_equals_torchs_encoder(monkeypatch, span, mask, padding, graph) -> None:
    monkeypatch.setattr(transformer, "WINDOW_QUERIES", 4)
    monkeypatch.setitem(transformer.FFN_TOKENS, "cpu", 5)
    ours = stack()
    x = torch.randn(3, 9, 8, dtype=torch.double)
    before = x.clone()
    with torch.set_grad_enabled(graph):
        y = ours(x, span)
        expected = torchs_own(ours)(x, mask, padding)
    valid = slice(None) if padding is None else ~padding
    torch.testing.assert_close(y[valid], expected[valid])
    assert torch.equal(x, before)


def test_gradients_equal_torchs_encoder() -> None:
    ours, x = stack(), torch.randn(2, 5, 8, dtype=torch.double, requires_grad=True)
    upstream = torch.randn(2, 5, 8, dtype=torch.double)
    (one,) = torch.autograd.grad(ours(x, Span(causal=True)), x, upstream)
    (two,) = torch.autograd.grad(torchs_own(ours)(x, causal_mask(5, 99)), x, upstream)
    torch.testing.assert_close(one, two)


def test_window_equals_the_whole_when_it_covers_it() -> None:
    q, k, v = torch.randn(3, 1, 2, 7, 4, dtype=torch.double)
    whole = attend(q, k, v, Span(causal=True))
    torch.testing.assert_close(attend(q, k, v, Span(causal=True, window=7)), whole)
    only_self = attend(q, k, v, Span(causal=True, window=1))
    torch.testing.assert_close(only_self, v)


def test_dropout_acts_in_training_only() -> None:
    model = TransformerStack(1, 8, 2, 12, dropout=0.5)
    x = torch.randn(1, 4, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_sinusoids() -> None:
    like = torch.zeros(0, dtype=torch.double)
    table = sinusoids(3, 5, 6, like)
    assert table.dtype == torch.double
    for row in range(5):
        for channel in range(6):
            angle = torch.tensor((3.0 + row) / 10000 ** (channel // 2 * 2 / 6))
            value = angle.cos() if channel % 2 else angle.sin()
            assert table[row, channel].item() == pytest.approx(value.item(), abs=1e-6)
    assert torch.equal(sinusoids(0, 8, 6, like)[3:], table)
    assert sinusoids(0, 2, 5, like).shape == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0, 8, 2, 12), "layer"), ((1, 8, 3, 12), "num_heads"), ((1, 8, 2, 0), "feed-forward")],
)
def test_bad_values_are_named(arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        TransformerStack(*arguments)
