"""The gate: pooled statistics, sampling, and what padding may not change."""

import math

import pytest
import torch

from espnet2_sepx.layers.gating import Gate, choose, pool_statistics
from espnet2_sepx.layers.norms import Padding


def padding_of(lengths, frames):
    return Padding.from_lengths(torch.tensor(lengths), frames)


@pytest.mark.parametrize("window", [(4, 3), (7, 0), (0, 0)])
def test_statistics_are_those_of_the_frames_in_the_window(window):
    x = torch.randn(2, 20, 3).double() + 5.0
    lengths = [20, 9]
    pooled = pool_statistics(x, padding_of(lengths, 20), window)
    for item, length in enumerate(lengths):
        for t in range(length):
            part = x[item, max(0, t - window[0]) : min(length, t + window[1] + 1)]
            std = part.var(0, unbiased=False).clamp_min(1e-8).sqrt()
            expected = torch.cat((part.mean(0), std))
            assert (pooled[item, t] - expected).abs().max() < 1e-6


def test_statistics_of_a_long_loud_constant_have_no_rounding_noise():
    pooled = pool_statistics(torch.full((1, 60_000, 1), 1000.0), None, (32, 31))
    assert pooled[..., 0].sub(1000.0).abs().max() < 1e-3
    assert pooled[..., 1].max() < 1e-2


@pytest.mark.parametrize(("align", "window"), [("centre", (32, 31)), ("causal", (63, 0))])
def test_window_of_64_frames(align, window):
    assert Gate(8, 2, gate_dim=4, ffn_dim=8, chunk_size=10, pool_align=align).window == window


def test_padding_changes_nothing():
    gate = Gate(6, 3, gate_dim=4, ffn_dim=8, chunk_size=10, pool_frames=8).double()
    for parameter in gate.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    x = torch.rand(3, 47, 6).double()
    lengths = [47, 31, 5]
    together = gate(x, padding_of(lengths, 47))
    for item, length in enumerate(lengths):
        alone = gate(x[item : item + 1, :length])
        assert (together[item, :length] - alone[0]).abs().max() < 1e-10


def test_evaluation_takes_the_largest():
    logits = torch.tensor([[[0.0, 2.0, 1.0], [3.0, -1.0, 2.9]]])
    assert choose(logits, 1.0, sample=False).tolist() == [[[0, 1, 0], [1, 0, 0]]]


def test_training_draws_from_the_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0])
    draws = choose(logits.expand(1, 20_000, 3), 1.0, sample=True)
    assert torch.equal(draws.sum(-1), torch.ones(1, 20_000))
    share = draws.mean((0, 1))
    error = 4 * math.sqrt(0.25 / 20_000)
    assert (share - logits.softmax(0)).abs().max() < error


def test_forward_is_hard_and_the_gradient_is_that_of_the_softmax():
    logits = torch.randn(2, 5, 3, dtype=torch.double, requires_grad=True)
    upstream = torch.randn_like(logits)
    hard = choose(logits, 2.0, sample=False)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    (grad,) = torch.autograd.grad((hard * upstream).sum(), logits)
    (expected,) = torch.autograd.grad(((logits / 2.0).softmax(-1) * upstream).sum(), logits)
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("options", [{"pool_frames": 0}, {"pool_align": "left"}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Gate(8, 2, gate_dim=4, ffn_dim=8, chunk_size=10, **options)
