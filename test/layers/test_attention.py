"""Relative attention: equal to the plain formula whatever the pieces, gradients included."""

from __future__ import annotations

import pytest
import torch

from espnet2_sepx.layers import attention
from espnet2_sepx.layers.attention import RelativeAttention, _RelativeAttention
from espnet2_sepx.layers.kernels import LOG2_E
from espnet2_sepx.layers.norms import Padding


def attend(qkv: torch.Tensor, table: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """``(O, n, I, 3, H, d)`` to (O, n, I, H, d) by the layer's function."""
    q, k, v = qkv.unbind(3)
    q = q * (LOG2_E / q.shape[-1] ** 0.5)
    return _RelativeAttention.apply(q, k.flip(1), v.flip(1), table, lengths)


def formula(qkv: torch.Tensor, table: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """The same by einsum over the gathered table."""
    full, dim, clip = qkv.shape[1], qkv.shape[-1], table.shape[0] // 2
    items = []
    for item, n in enumerate(lengths):
        q, k, v = qkv[item, :n].unbind(2)
        at = torch.arange(n)
        relative = table[(at[:, None] - at).clamp(-clip, clip) + clip]
        scores = torch.einsum("ichd,jchd->chij", q, k) + torch.einsum("ichd,ijd->chij", q, relative)
        y = torch.einsum("chij,jchd->ichd", (scores / dim**0.5).softmax(-1), v)
        items.append(torch.cat([y, y.new_zeros(full - n, *y.shape[1:])]))
    return torch.stack(items)


@pytest.mark.parametrize("scores", [1, 80, 1 << 20], ids=["one-query", "blocks", "whole"])
def test_any_pieces_equal_the_formula(monkeypatch, scores) -> None:
    monkeypatch.setitem(attention.PIECE_SCORES, "cpu", scores)
    qkv = torch.randn(2, 7, 3, 3, 2, 4, dtype=torch.double, requires_grad=True)
    table = torch.randn(9, 4, dtype=torch.double, requires_grad=True)
    lengths = (7, 5)  # longer than the clip distance 4
    y, reference = attend(qkv, table, lengths), formula(qkv, table, lengths)
    torch.testing.assert_close(y, reference)
    upstream = torch.randn_like(y)
    expected = torch.autograd.grad(reference, (qkv, table), upstream)
    for a, b in zip(torch.autograd.grad(y, (qkv, table), upstream), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck() -> None:
    qkv = torch.randn(1, 3, 1, 3, 1, 2, dtype=torch.double, requires_grad=True)
    table = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda qkv, table: attend(qkv, table, (3,)), (qkv, table))


@pytest.mark.parametrize("length", [1, 150])
def test_both_product_routes_in_float32(length) -> None:
    """Lengths on both sides of ``SHORT``, and the shortest."""
    qkv = torch.randn(1, length, 2, 3, 2, 8, requires_grad=True)
    table = torch.randn(21, 8, requires_grad=True)
    ours, reference = attend(qkv, table, (length,)), formula(qkv, table, (length,))
    assert (ours - reference).abs().max() < 1e-5
    upstream = torch.randn_like(ours)
    ours = torch.autograd.grad(ours, (qkv, table), upstream)
    for a, b in zip(ours, torch.autograd.grad(reference, (qkv, table), upstream), strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max().clamp_min(1.0)


def test_large_scores_do_not_overflow() -> None:
    qkv, table = 60.0 * torch.randn(1, 20, 1, 3, 1, 4), torch.zeros(3, 4)
    y = attend(qkv, table, (20,))
    assert y.isfinite().all()
    torch.testing.assert_close(y, formula(qkv, table, (20,)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_in_place_inference_equals_forward(axis) -> None:
    layer = RelativeAttention(8, 2, 4, max_rel_pos=3, axis=axis).double().eval()
    norm = torch.nn.LayerNorm(8).double()
    x = torch.randn(2, 9, 5, 8, dtype=torch.double)
    padding = Padding.from_lengths(torch.tensor([9, 6]), 9)
    for mask in (None, padding):
        with torch.no_grad():
            expected = x + layer(norm(x), mask)
            y = x.clone()
            layer.add_to(y, norm, mask)
        valid = slice(None) if mask is None else mask.valid
        torch.testing.assert_close(y[valid], expected[valid])


def test_frames_only_see_their_own_axis() -> None:
    x = torch.randn(1, 6, 4, 8)
    other = x.clone()
    other[0, 3, 2] += 1.0
    for axis, touched in (("time", (slice(None), 2)), ("frequency", (3, slice(None)))):
        layer = RelativeAttention(8, 2, 4, max_rel_pos=3, axis=axis)
        difference = (layer(x) - layer(other))[0].abs().sum(-1)
        assert (difference[touched] > 0).all()
        difference[touched] = 0
        assert difference.abs().max() == 0


def test_second_derivatives_are_refused() -> None:
    qkv = torch.randn(1, 3, 1, 3, 1, 2, requires_grad=True)
    table = torch.randn(3, 2, requires_grad=True)
    (first,) = torch.autograd.grad(attend(qkv, table, (3,)).square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
