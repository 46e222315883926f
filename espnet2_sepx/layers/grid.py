"""Parts of TF-GridNet (first version) that SPMamba keeps: paths along one axis, frame attention.

A path cuts each sequence into overlapping windows of I positions, runs a sequence model over the
windows and overlap-adds what it returns. Frame attention lets every frame look at all others by
vectors that hold its whole spectrum.

Sequences are independent of each other, so a path works off a few at a time: all that it holds
for them fits the processor's cache, which is worth more than any of the kernels, and memory does
not grow with their number. Training may compute such a piece again instead of keeping it.

Legend: B batch, T frames, F bins, D embedding channels, S sequences, L windows, P positions of a
sequence, I window length, J hop, H heads, E query channels, V value channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from espnet2_sepx.layers.kernels import linear
from espnet2_sepx.layers.mamba import MambaLayer

PIECE_NUMBERS = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Size of the widest tensor in the sequences that a path works off at a time."""
QUERY_BLOCK = 256
"""Frames whose attention is computed at a time."""


class ChannelNorm(nn.Module):
    """Layer norm over the channels of ``(..., D)``, parameters as in TF-GridNet's."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, dim, 1, 1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma.flatten(), self.beta.flatten(), self.eps)


class FrameNorm(nn.Module):
    """Layer norm over channels and bins of each frame; ``channels`` of its own per head.

    Shape: ``(B, T, F, channels) -> (B, T, F, channels)``.
    """

    def __init__(self, channels: int, bins: int, eps: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, bins))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, bins))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (p[0, :, 0].t() for p in (self.gamma, self.beta))  # (F, channels)
        return F.layer_norm(x, weight.shape, weight.contiguous(), bias.contiguous(), self.eps)


# ---- windows -----------------------------------------------------------------------------------


class _Windows(torch.autograd.Function):
    """``(S, P, D) -> (S, L, D I)``, window after window, each channel's positions side by side."""

    @staticmethod
    def forward(ctx, x, size, hop):  # type: ignore[no-untyped-def]
        ctx.options = x.shape[1], size, hop
        return x.unfold(1, size, hop).flatten(2)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return _OverlapAdd.apply(grad, *ctx.options), None, None


class _OverlapAdd(torch.autograd.Function):
    """``(S, L, D I) -> (S, P, D)``, the adjoint of ``_Windows``."""

    @staticmethod
    def forward(ctx, y, positions, size, hop):  # type: ignore[no-untyped-def]
        ctx.options = size, hop
        windows = y.unflatten(-1, (-1, size))  # (S, L, D, I)
        x = y.new_zeros(y.shape[0], positions, windows.shape[2])
        span = hop * (y.shape[1] - 1) + 1
        for k in range(size):
            x[:, k : k + span : hop] += windows[..., k]
        return x

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return _Windows.apply(grad, *ctx.options), None, None, None


# ---- sequence models ---------------------------------------------------------------------------


class LSTMLayer(nn.LSTM):
    """A batch-first LSTM that returns its outputs only; TF-GridNet's sequence model."""

    def __init__(self, dim: int, hidden: int, bidirectional: bool = True) -> None:
        super().__init__(dim, hidden, batch_first=True, bidirectional=bidirectional)

    @property
    def output_size(self) -> int:
        return self.hidden_size * (2 if self.bidirectional else 1)

    @property
    def widest(self) -> int:
        """Numbers per step in the largest of its tensors."""
        return 4 * self.output_size

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return nn.LSTM.forward(self, x)[0]

    def forward_streaming(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One direction only: continue after the steps that ``state`` remembers."""
        return nn.LSTM.forward(self, x, state)


SequenceModel = MambaLayer | LSTMLayer


# ---- paths -------------------------------------------------------------------------------------


@dataclass
class PathState:
    """What a causal path remembers of the positions before."""

    tail: Tensor
    """(S, I - 1, D), normalised input"""
    model: Any
    """of the sequence model"""
    overlap: Tensor
    """(S, I - 1, D), contributions to the positions to come"""


def run_path(
    x: Tensor,
    norm: ChannelNorm,
    model: SequenceModel,
    deconv: nn.ConvTranspose1d,
    causal: bool = False,
    recompute: bool = False,
) -> Tensor:
    """x + overlap_add(deconv(model(windows(norm(x))))) for sequences ``x`` (S, P, D).

    Args:
        causal: a window ends at its position instead of starting there, so that position p depends
            on 0 .. p only (hop 1).
        recompute: training computes each piece again in backward and keeps its input only.
    """
    size, hop = deconv.kernel_size[0], deconv.stride[0]

    def run(piece: Tensor) -> Tensor:
        y, extra = norm(piece), size - 1 if causal else 0
        windows = _Windows.apply(F.pad(y, (0, 0, extra, 0)) if causal else y, size, hop)
        y = _deconvolve(model(windows), deconv, piece.shape[1] + extra)
        return piece + y[:, : piece.shape[1]]

    step: Callable[[Tensor], Tensor] = run
    if recompute and torch.is_grad_enabled():
        step = functools.partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
    numbers = ((x.shape[1] - size) // hop + 1) * model.widest
    limit = PIECE_NUMBERS.get(x.device.type, PIECE_NUMBERS["cuda"])
    return torch.cat([step(piece) for piece in x.split(max(1, limit // max(1, numbers)))])


def stream_path(
    x: Tensor,
    norm: ChannelNorm,
    model: SequenceModel,
    deconv: nn.ConvTranspose1d,
    state: PathState | None,
) -> tuple[Tensor, PathState]:
    """The causal ``run_path``, continued after the positions that ``state`` remembers."""
    back, positions = deconv.kernel_size[0] - 1, x.shape[1]
    if state is None:
        nothing = x.new_zeros(x.shape[0], back, x.shape[2])
        state = PathState(nothing, None, nothing)
    seen = torch.cat((state.tail, norm(x)), 1)
    y, kept = model.forward_streaming(_Windows.apply(seen, back + 1, 1), state.model)
    y = _deconvolve(y, deconv, positions + back, bias=False)
    y[:, :back] += state.overlap
    assert deconv.bias is not None
    out = x + y[:, :positions] + deconv.bias
    return out, PathState(seen[:, positions:], kept, y[:, positions:])


def _deconvolve(y: Tensor, deconv: nn.ConvTranspose1d, positions: int, bias: bool = True) -> Tensor:
    """The transposed convolution of ``y`` (S, L, C), channels last."""
    out = linear(y, deconv.weight.flatten(1).t())  # (S, L, D I)
    out = _OverlapAdd.apply(out, positions, deconv.kernel_size[0], deconv.stride[0])
    return out + deconv.bias if bias else out


# ---- attention ---------------------------------------------------------------------------------

ACTIVATIONS = {"prelu": nn.PReLU, "relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU}


class FrameProjection(nn.Sequential):
    """1 x 1 convolution, activation and frame norm, named as TF-GridNet names them.

    Shape: ``(B, T, F, D) -> (B, T, F, channels)``.
    """

    def __init__(self, dim: int, channels: int, bins: int, activation: str, eps: float) -> None:
        super().__init__(
            nn.Conv2d(dim, channels, 1), ACTIVATIONS[activation](), FrameNorm(channels, bins, eps)
        )

    def forward(self, x: Tensor) -> Tensor:
        conv, activation, norm = self
        assert isinstance(conv, nn.Conv2d)
        return norm(activation(linear(x, conv.weight.flatten(1), conv.bias)))


def attend(q: Tensor, k: Tensor, v: Tensor, context: int | None, before: int = 0) -> Tensor:
    """softmax(q k^T / sqrt(width)) v, some queries at a time.

    Args:
        q: (B, H, T, width), behind the first ``before`` keys.
        k, v: (B, H, before + T, ...).
        context: None, or how many positions a query sees: its own and those just before.
    """
    outputs = []
    for start in range(0, q.shape[2], QUERY_BLOCK):
        queries = q[:, :, start : start + QUERY_BLOCK] * q.shape[-1] ** -0.5
        first, last = 0, k.shape[2]
        if context is not None:
            last = before + start + queries.shape[2]
            first = max(0, before + start - context + 1)
        scores = queries @ k[:, :, first:last].transpose(2, 3)
        if context is not None:
            at = torch.arange(before + start, last, device=q.device)[:, None]
            age = at - torch.arange(first, last, device=q.device)
            scores = scores.masked_fill((age < 0) | (age >= context), -torch.inf)
        outputs.append(scores.softmax(-1) @ v[:, :, first:last])
    return torch.cat(outputs, 2)
