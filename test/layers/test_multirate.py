"""Layers over several frame rates: PyTorch's own offline, the past only in the causal form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from espnet2_sepx.layers.multirate import DepthwiseConv, FrameNorm, Memory, Rates


def features(frames: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, frames, channels, dtype=torch.double)


def by_channel(function, x, *args, **kwargs) -> torch.Tensor:
    return function(x.transpose(1, 2), *args, **kwargs).transpose(1, 2)


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 1010])
def test_frames_of_each_rate(frames) -> None:
    assert Rates(frames, 4, False).counts == [-(-frames // 2**rate) for rate in range(4)]


@pytest.mark.parametrize("frames", [1, 5, 16, 101])
def test_offline_pooling_and_stretching_are_pytorchs(frames) -> None:
    rates = Rates(frames, 4, causal=False)
    x = features(frames)
    low = rates.counts[3]
    expected = by_channel(F.adaptive_avg_pool1d, x, low)
    torch.testing.assert_close(rates.pool(x, 3, 0), expected)
    coarse = features(low)
    expected = by_channel(F.interpolate, coarse, size=frames)
    assert torch.equal(rates.stretch(coarse, 3, 0), expected)
    assert rates.stretch(x, 0, 0) is x
    assert rates.pool(x, 0, 0) is x


def test_causal_pooling_and_stretching() -> None:
    rates = Rates(10, 3, causal=True)
    x = features(10)
    padded = torch.cat((x.new_zeros(2, 3, 3), x), 1)
    expected = torch.stack([padded[:, j : j + 4].mean(1) for j in (0, 4, 8)], 1)
    torch.testing.assert_close(rates.pool(x, 2, 0), expected)
    coarse = features(3)
    assert torch.equal(rates.stretch(coarse, 2, 0), coarse.repeat_interleave(4, 1)[:, :10])


@pytest.mark.parametrize(("taps", "stride", "bias"), [(1, 1, True), (5, 1, False), (5, 2, True)])
def test_depthwise_convolution(taps, stride, bias) -> None:
    conv = DepthwiseConv(3, taps, stride, bias).double()
    for frames in (1, 2, 9, 10):
        x = features(frames)
        expected = by_channel(
            F.conv1d, x, conv.weight, conv.bias, stride, padding=taps // 2, groups=3
        )
        torch.testing.assert_close(conv(x, Rates(frames, 2, causal=False), 0), expected)
        past = torch.cat((x.new_zeros(2, taps - 1, 3), x), 1)
        expected = by_channel(F.conv1d, past, conv.weight, conv.bias, stride, groups=3)
        torch.testing.assert_close(conv(x, Rates(frames, 2, causal=True), 0), expected)


def test_norms() -> None:
    norm = FrameNorm(3).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = 5 + features(6)
    expected = by_channel(F.group_norm, x, 1, norm.weight, norm.bias, 1e-8)
    torch.testing.assert_close(norm(x), expected)
    so_far = [norm(x[:, : t + 1])[:, -1] for t in range(6)]
    torch.testing.assert_close(norm(x, causal=True), torch.stack(so_far, 1))


def test_cumulative_norm_of_a_long_loud_stream_stays_exact() -> None:
    norm = FrameNorm(4)
    x = 100 + torch.randn(1, 200_000, 4)
    y = norm(x, causal=True)[:, -1000:]
    exact = norm.double()(x.double(), causal=True)[:, -1000:]
    assert (y - exact).abs().max() < 2e-4


@pytest.mark.parametrize("sizes", [[1] * 21, [3, 1, 9, 8], [8, 8, 5], [20, 1]])
def test_streams_equal_the_whole(sizes) -> None:
    conv, down, norm = DepthwiseConv(3, 5), DepthwiseConv(3, 5, 2), FrameNorm(3)

    def run(x: torch.Tensor, rates: Rates, memory: Memory | None) -> torch.Tensor:
        def part(name: str) -> Memory | None:
            return None if memory is None else memory.part(name)

        y = norm(conv(x, rates, 0, part("conv")), True, part("norm"))
        low = down(down(y, rates, 0, part("down0")), rates, 1, part("down1"))
        low = norm(low, True, part("low")) + rates.pool(y, 2, 0, part("pool"))
        return y * rates.stretch(low, 2, 0, part("stretch"))

    for module in (conv, down, norm):
        module.double()
    x = features(21)
    with torch.no_grad():
        whole = run(x, Rates(21, 3, causal=True), None)
        start, kept, outputs = 0, {}, []
        for chunk in x.split(sizes, 1):
            memory = Memory(kept)
            before = dict(kept)
            outputs.append(run(chunk, Rates(chunk.shape[1], 3, True, start), memory))
            assert kept.keys() == before.keys()  # the state given is left alone
            start, kept = start + chunk.shape[1], memory.left
    torch.testing.assert_close(torch.cat(outputs, 1), whole)
