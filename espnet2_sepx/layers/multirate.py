"""Layers over features at several frame rates, each half of the one before.

Every layer has two forms with the same parameters. The offline form sees the whole utterance:
centred windows, statistics over all frames. The causal form looks at the past only: frame j of rate
r depends on the first 2^r j + 1 frames of rate 0. It also continues from chunk to chunk, when a
``Memory`` holds what it needs of the chunks before; without one, the past is zeros.

Legend: B batch, L frames, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-8


class Memory:
    """Tensors that a stream carries from one chunk to the next, by name.

    Layers ``take`` what the chunk before has left and ``leave`` their own; ``part`` gives a layer
    names of its own. What was given is not changed: ``left`` holds the values for the next chunk.
    """

    def __init__(
        self, given: Mapping[str, Tensor], left: dict[str, Tensor] | None = None, prefix: str = ""
    ) -> None:
        self._given = given
        self.left = dict(given) if left is None else left
        self._prefix = prefix

    def part(self, name: str) -> Memory:
        return Memory(self._given, self.left, f"{self._prefix}{name}.")

    def take(self, name: str) -> Tensor | None:
        return self._given.get(self._prefix + name)

    def leave(self, name: str, value: Tensor) -> None:
        self.left[self._prefix + name] = value.detach()


class Rates:
    """Which frames of each rate one call processes, and how rates map to each other.

    Args:
        frames: L, of rate 0.
        num_rates: rates 0 to ``num_rates - 1``.
        causal: see the top of the file.
        start: frames of rate 0 in the chunks before.

    Attributes:
        starts: frames in the chunks before, per rate.
        counts: frames of this call, per rate (of a short chunk perhaps none).
    """

    def __init__(self, frames: int, num_rates: int, causal: bool, start: int = 0) -> None:
        self.causal = causal
        self.starts = [-(-start // 2**rate) for rate in range(num_rates)]
        ends = [-(-(start + frames) // 2**rate) for rate in range(num_rates)]
        self.counts = [end - start for start, end in zip(self.starts, ends, strict=True)]
        self._sources: dict[tuple[int, int], Tensor] = {}

    def pool(self, x: Tensor, low: int, high: int, memory: Memory | None = None) -> Tensor:
        """Mean of ``x (B, L_high, C)`` over the frames behind each frame of rate ``low``."""
        if low == high:
            return x
        if not self.causal:
            size = (1, self.counts[low])
            return _channels_first(F.adaptive_avg_pool2d, x, size)
        factor = 2 ** (low - high)
        x = self.windows(x, high, factor, factor, memory)
        return _channels_first(F.avg_pool2d, x, (1, factor)) if self.counts[low] else x[:, :0]

    def stretch(self, x: Tensor, low: int, high: int, memory: Memory | None = None) -> Tensor:
        """Repeat frames of ``x (B, L_low, C)`` to rate ``high`` (nearest neighbour)."""
        if low == high:
            return x
        if memory is not None:  # the frame that lasts into this chunk
            last = memory.take("last")
            last = x.new_zeros(x.shape[0], 1, x.shape[2]) if last is None else last
            x = torch.cat((last, x), 1)
            memory.leave("last", x[:, -1:])
        source = self._source(low, high, x.device, first_is_last=memory is not None)
        return x.index_select(1, source)

    def windows(
        self, x: Tensor, rate: int, size: int, stride: int, memory: Memory | None
    ) -> Tensor:
        """Prepend the past to ``x (B, L, C)`` so that windows of ``size`` frames at ``stride`` end
        where a frame number of ``rate`` is a multiple of ``stride``."""
        past = None if memory is None else memory.take("past")
        if past is None:
            past = x.new_zeros(x.shape[0], size - 1, x.shape[2])
        x = torch.cat((past, x), 1)
        if memory is not None:
            memory.leave("past", x[:, x.shape[1] - size + 1 :])
        return x[:, -self.starts[rate] % stride :]

    def _source(self, low: int, high: int, device: torch.device, first_is_last: bool) -> Tensor:
        """Which frame of rate ``low`` lasts at each frame of rate ``high``."""
        if (low, high) not in self._sources:
            frame = torch.arange(self.counts[high], device=device)
            if self.causal:
                source = (frame + self.starts[high]) // 2 ** (low - high) - self.starts[low]
                source = source + first_is_last
            else:
                source = frame * self.counts[low] // self.counts[high]
            self._sources[low, high] = source
        return self._sources[low, high]


class DepthwiseConv(nn.Module):
    """One filter per channel, of ``kernel_size`` taps at ``stride``: 1, or 2 for the next rate.

    Shape: ``(B, L, C) -> (B, ceil(L / stride), C)``.
    """

    def __init__(self, dim: int, kernel_size: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        bound = kernel_size**-0.5  # as in nn.Conv1d
        self.weight = nn.Parameter(torch.empty(dim, 1, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound)) if bias else None
        self.stride = stride

    def forward(self, x: Tensor, rates: Rates, rate: int, memory: Memory | None = None) -> Tensor:
        """``rate``: that of ``x``."""
        taps = self.weight.shape[-1]
        if taps == 1 and self.stride == 1:  # a convolution would be one product per channel
            y = x * self.weight[:, 0, 0]
            return y if self.bias is None else y + self.bias
        if rates.causal:
            x = rates.windows(x, rate, taps, self.stride, memory)
            if x.shape[1] < taps:
                return x[:, :0]
        padding = 0 if rates.causal else taps // 2
        return _channels_first(
            F.conv2d,
            x,
            self.weight[:, :, None],
            self.bias,
            stride=(1, self.stride),
            padding=(0, padding),
            groups=x.shape[2],
        )


class FrameNorm(nn.Module):
    """Normalisation over channels and frames with a gain and an offset per channel.

    Offline over all frames (global layer norm), causally over those so far (cumulative layer norm).

    Shape: ``(B, L, C) -> (B, L, C)``.
    """

    def __init__(self, dim: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, causal: bool = False, memory: Memory | None = None) -> Tensor:
        if not causal:
            options = 1, self.weight, self.bias, self.eps
            if torch.is_grad_enabled() and not x.requires_grad:
                # PyTorch 2.11 crashes in the channels-last backward without a gradient for x
                return F.group_norm(x.transpose(1, 2).contiguous(), *options).transpose(1, 2)
            return _channels_first(F.group_norm, x, *options)
        mean, scale = self._statistics_so_far(x, memory)
        return (x - mean) * scale * self.weight + self.bias

    def _statistics_so_far(self, x: Tensor, memory: Memory | None) -> tuple[Tensor, Tensor]:
        """Mean and 1/deviation (B, L, 1) in float64: the sums of a long stream grow."""
        wide = x.double()
        sums = torch.stack(
            (wide.new_full(x.shape[:2], x.shape[2]), wide.sum(-1), wide.square().sum(-1)), 1
        ).cumsum(-1)  # (B, 3, L)
        if memory is not None:
            before = memory.take("sums")
            if before is not None:
                sums = sums + before
            if x.shape[1]:
                memory.leave("sums", sums[..., -1:])
        count, total, squares = sums.unbind(1)
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0.0)
        scale = (variance + self.eps).rsqrt()
        return mean[..., None].to(x.dtype), scale[..., None].to(x.dtype)


def _channels_first(function, x: Tensor, *args, **kwargs) -> Tensor:  # type: ignore[no-untyped-def]
    """Call a function of images ``(B, C, 1, L)`` with ``(B, L, C)``, which is then PyTorch's
    channels-last layout: its kernels are the fastest on a CPU."""
    return function(x.transpose(1, 2)[:, :, None], *args, **kwargs)[:, :, 0].transpose(1, 2)
