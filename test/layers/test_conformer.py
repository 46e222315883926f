"""Conformer and RNN modules: parameter formulas, masked batch norm, folded inference."""

from __future__ import annotations

import copy

import pytest
import torch

from espnet2_sepx.layers.conformer import ConformerModule, ConvModule
from espnet2_sepx.layers.feed_forward import FeedForward
from espnet2_sepx.layers.kernels import PIECE_TOKENS
from espnet2_sepx.layers.norms import MaskedBatchNorm, Padding
from espnet2_sepx.layers.rnn import RNNModule


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("n", [30, 32])
def test_parameter_counts(n) -> None:
    assert count(FeedForward(n, 4)) == 8 * n**2 + 5 * n
    module = ConformerModule(n, "time")
    assert count(module.attention) == 257 * n + 16400 - 64 * 0
    assert count(module.conv) + 2 * n == 6 * n**2 + 43 * n
    assert count(module) == 22 * n**2 + 318 * n + 16400
    experts = {"num_experts": 6}
    moe = ConformerModule(n, "time", experts=experts)
    assert count(moe.ffn1) == 6 * (8 * n**2 + 5 * n) + 6 * n
    assert count(RNNModule(n, "time", "gru")) == 40 * n**2 + 27 * n
    assert count(RNNModule(n, "time", "lstm")) == 52 * n**2 + 35 * n


def test_batch_norm_ignores_padded_frames() -> None:
    x = torch.randn(2, 6, 3, 4, dtype=torch.double)
    padding = Padding.from_lengths(torch.tensor([6, 2]), 6)
    masked, plain = (MaskedBatchNorm(4).double() for _ in range(2))
    valid = x[padding.valid].reshape(-1, 4)
    torch.testing.assert_close(
        masked(x, padding)[padding.valid].reshape(-1, 4),
        torch.nn.functional.batch_norm(valid, None, None, training=True),
    )
    plain(valid.view(1, 1, -1, 4))
    torch.testing.assert_close(masked.running_mean, plain.running_mean)
    torch.testing.assert_close(masked.running_var, plain.running_var)


@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_folded_batch_norm_equals_forward(axis) -> None:
    layer = ConvModule(4, 2, 5, axis).double()
    norm = torch.nn.LayerNorm(4).double()
    x = torch.randn(2, 8, 6, 4, dtype=torch.double)
    for _ in range(3):
        layer(torch.randn_like(x) + 1.0)  # move the running statistics
    layer.eval()
    for padding in (None, Padding.from_lengths(torch.tensor([8, 5]), 8)):
        with torch.no_grad():
            expected = x + layer(norm(x), padding)
            y = x.clone()
            layer.add_to(y, norm, padding)
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_depthwise_reach_is_half_the_kernel_on_its_axis(axis) -> None:
    layer = ConvModule(4, 2, 5, axis).eval()
    x = torch.randn(1, 9, 9, 4)
    other = x.clone()
    other[0, 4, 4] += 1.0
    touched = ((layer(x) - layer(other)).abs().sum(-1)[0] > 0).nonzero()
    line = [(t, 4) if axis == "time" else (4, t) for t in range(2, 7)]
    assert sorted(map(tuple, touched.tolist())) == sorted(line)


def test_more_tokens_than_a_piece() -> None:
    layer, norm = FeedForward(4, 2), torch.nn.LayerNorm(4)
    x = torch.randn(1, PIECE_TOKENS // 8 + 3, 10, 4, requires_grad=True)
    expected = layer.linear2(torch.nn.functional.silu(layer.linear1(x)))
    ours = layer(x)
    torch.testing.assert_close(ours, expected)
    upstream = torch.randn_like(ours)
    inputs = (x, *layer.parameters())
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        y = x.detach().clone()
        layer.add_to(y, norm, 0.5)
        torch.testing.assert_close(y, x + 0.5 * layer(norm(x)))


def test_inference_leaves_its_input_alone_and_follows_new_weights() -> None:
    module = ConformerModule(8, "time", num_heads=2, head_dim=4, conv_kernel=3, max_rel_pos=4)
    x = torch.randn(1, 5, 3, 8)
    before = x.clone()
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
        first = module.eval()(x)[0]
        module.load_state_dict(other.state_dict())
        second = module(x)[0]
        expected = other.eval()(x)[0]
    assert torch.equal(x, before)
    assert not torch.allclose(first, second)
    assert torch.equal(second, expected)


@pytest.mark.parametrize("rnn_type", ["gru", "lstm"])
def test_backward_direction_starts_at_the_last_valid_frame(rnn_type) -> None:
    module = RNNModule(4, "time", rnn_type).double()
    x = torch.randn(2, 7, 3, 4, dtype=torch.double)
    padding = Padding.from_lengths(torch.tensor([7, 4]), 7)
    together = module(x, padding)[1, :4]
    torch.testing.assert_close(together, module(x[1:, :4])[0])
