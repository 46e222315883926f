"""Paths and frame attention of TF-GridNet against PyTorch's own operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from espnet2_sepx.layers import grid
from espnet2_sepx.layers.mamba import MambaLayer

D = 3


@pytest.fixture
def parts():
    torch.manual_seed(0)

    def make(size=4, hop=1, bidirectional=True):
        norm = grid.ChannelNorm(D, 1e-5)
        model = MambaLayer(D * size, bidirectional=bidirectional, d_state=2)
        deconv = torch.nn.ConvTranspose1d(model.output_size, D, size, hop)
        return tuple(part.double() for part in (norm, model, deconv))

    return make


@pytest.mark.parametrize("hop", [1, 2, 4])
def test_path_equals_unfold_and_transposed_convolution(parts, hop) -> None:
    norm, model, deconv = parts(4, hop)
    x = torch.randn(5, 12, D, dtype=torch.float64)
    y = norm(x).transpose(1, 2)
    windows = F.unfold(y[..., None], (4, 1), stride=(hop, 1)).transpose(1, 2)
    expected = x + deconv(model(windows).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(grid.run_path(x, norm, model, deconv), expected)


def test_windows_and_overlap_add_are_adjoint() -> None:
    x = torch.randn(2, 10, D, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 4, D * 4, dtype=torch.float64, requires_grad=True)
    windows, added = grid._Windows.apply(x, 4, 2), grid._OverlapAdd.apply(y, 10, 4, 2)
    torch.testing.assert_close((windows * y).sum(), (added * x).sum())
    assert torch.autograd.gradcheck(lambda x: grid._Windows.apply(x, 4, 2), x)
    assert torch.autograd.gradcheck(lambda y: grid._OverlapAdd.apply(y, 10, 4, 2), y)
    assert torch.autograd.gradgradcheck(lambda x: grid._Windows.apply(x, 4, 2).square(), x)


def test_pieces_change_nothing(parts, monkeypatch) -> None:
    norm, model, deconv = parts()
    x = torch.randn(9, 12, D, dtype=torch.float64)
    with torch.no_grad():
        whole = grid.run_path(x, norm, model, deconv)
        monkeypatch.setitem(grid.PIECE_NUMBERS, "cpu", 1000)
        torch.testing.assert_close(grid.run_path(x, norm, model, deconv), whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("causal", [False, True])
def test_recomputing_changes_memory_only(parts, monkeypatch, causal) -> None:
    monkeypatch.setitem(grid.PIECE_NUMBERS, "cpu", 1000)
    modules = parts(bidirectional=not causal)
    kept, grads = [], []
    for recompute in (False, True):
        x = torch.randn(6, 12, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x.requires_grad_()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        ):
            y = grid.run_path(x, *modules, causal=causal, recompute=recompute)
        y.square().sum().backward()
        kept.append(sum(sizes))
        grads.append(x.grad)
    assert torch.equal(*grads)
    assert kept[1] < kept[0] / 10


def test_causal_path_in_chunks_equals_the_whole(parts) -> None:
    modules = parts(bidirectional=False)
    x = torch.randn(2, 17, D, dtype=torch.float64)
    changed = x.clone()
    changed[:, 9:] -= 3
    with torch.no_grad():
        whole = grid.run_path(x, *modules, causal=True)
        difference = (grid.run_path(changed, *modules, causal=True) - whole).abs().amax((0, 2))
        state, outputs = None, []
        for chunk in x.split((1, 2, 6, 8), 1):
            y, state = grid.stream_path(chunk, *modules, state)
            outputs.append(y)
    assert difference[:9].max() == 0
    assert difference[9] > 0
    torch.testing.assert_close(torch.cat(outputs, 1), whole)


@pytest.mark.parametrize("context", [None, 1, 3, 100])
def test_attention_equals_pytorchs(monkeypatch, context) -> None:
    q, k, v = (torch.randn(2, 3, 11, width, dtype=torch.float64) for width in (6, 6, 4))
    mask = None
    if context is not None:
        age = torch.arange(11)[:, None] - torch.arange(11)
        mask = (age >= 0) & (age < context)
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    for block in (4, 256):
        monkeypatch.setattr(grid, "QUERY_BLOCK", block)
        torch.testing.assert_close(grid.attend(q, k, v, context), expected)
        if context is not None:
            late = grid.attend(q[:, :, 7:], k, v, context, before=7)
            torch.testing.assert_close(late, expected[:, :, 7:])


def test_lstm_layer_streams() -> None:
    model = grid.LSTMLayer(5, 7, bidirectional=False)
    x = torch.randn(2, 9, 5)
    with torch.no_grad():
        first, state = model.forward_streaming(x[:, :4], None)
        second, _ = model.forward_streaming(x[:, 4:], state)
        torch.testing.assert_close(torch.cat((first, second), 1), model(x))
    assert grid.LSTMLayer(5, 7).output_size == 14
