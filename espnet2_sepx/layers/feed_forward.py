"""The feed-forward of eq. 1, W2 swish(W1 x + b1) + b2, for one expert or many.

The hidden activations never leave the cache: tokens are worked off in pieces, and backward computes
them anew instead of keeping them, which is as fast on a CPU and saves most of a layer's memory.

Legend: n tokens, N width, H hidden width, E experts, m slots (tokens in the order of their experts).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_sepx.layers.kernels import (
    compute_dtype,
    matmul_t,
    pieces,
    round_rows,
    weight_gradient,
    without_autocast,
)

Stacked = tuple[Tensor, Tensor, Tensor, Tensor]
"""W1 (E, H, N), b1 (E, H), W2 (E, N, H), b2 (E, N)."""


class FeedForward(nn.Module):
    """Dense feed-forward. Shape: ``(..., N) -> (..., N)``."""

    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, expansion * dim)
        self.linear2 = nn.Linear(expansion * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        tokens = x.reshape(-1, x.shape[-1]).to(dtype)
        return run_experts(tokens, [tokens.shape[0]], self._stacked(dtype)).view(x.shape)

    def add_to(self, x: Tensor, norm: nn.LayerNorm, factor: float) -> None:
        """x += factor * ffn(norm(x)) in place, outside of any graph."""
        tokens = x.view(-1, x.shape[-1])
        weights = self._stacked(x.dtype)
        for piece in pieces(0, tokens.shape[0], x.device):
            target = tokens[piece]
            y = F.layer_norm(target, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            target.add_(expert_forward(y, weights, 0), alpha=factor)

    def _stacked(self, dtype: torch.dtype) -> Stacked:
        linears = (self.linear1, self.linear2)
        w1, b1, w2, b2 = (p.to(dtype)[None] for layer in linears for p in layer.parameters())
        return w1, b1, w2, b2


def expert_forward(x: Tensor, weights: Stacked, expert: int) -> Tensor:
    """One expert on ``(n, N)``, outside of any graph."""
    w1, b1, w2, b2 = weights
    hidden = F.silu(matmul_t(round_rows(x), w1[expert], b1[expert]), inplace=True)
    return matmul_t(hidden, w2[expert], b2[expert])[: x.shape[0]]


def expert_pieces(counts: list[int], device: torch.device) -> Iterator[tuple[int, slice]]:
    """(expert, slots) for all slots, given the number of slots of each expert."""
    start = 0
    for expert, count in enumerate(counts):
        for piece in pieces(start, start + count, device):
            yield expert, piece
        start += count


def run_experts(x: Tensor, counts: list[int], weights: Stacked) -> Tensor:
    """Each run of ``counts[e]`` rows of ``x (m, N)`` through expert e."""
    return _Experts.apply(x, counts, *weights)


class _Experts(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, x, counts, *weights):  # type: ignore[no-untyped-def]
        y = torch.empty_like(x)
        for expert, piece in expert_pieces(counts, x.device):
            y[piece] = expert_forward(x[piece], weights, expert)
        ctx.save_for_backward(x, *weights)
        ctx.counts = counts
        return y

    @staticmethod
    @without_autocast
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, w1, b1, w2, b2 = ctx.saved_tensors
        d_x = torch.empty_like(x)
        d_w1, d_b1, d_w2, d_b2 = (torch.zeros_like(w) for w in (w1, b1, w2, b2))
        for expert, piece in expert_pieces(ctx.counts, x.device):
            g, tokens = round_rows(grad[piece]), round_rows(x[piece])
            before = matmul_t(tokens, w1[expert], b1[expert])
            d_w2[expert] += weight_gradient(g, F.silu(before))
            d_b2[expert] += g.sum(0)
            d_before = torch.ops.aten.silu_backward(matmul_t(g, w2[expert].t()), before)
            d_w1[expert] += weight_gradient(d_before, tokens)
            d_b1[expert] += d_before.sum(0)
            d_x[piece] = matmul_t(d_before, w1[expert].t())[: piece.stop - piece.start]
        return d_x, None, d_w1, d_b1, d_w2, d_b2
