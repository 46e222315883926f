"""The feed-forward of eq. 1, W2 swish(W1 x + b1) + b2: one expert, or the dense layer.

The hidden activations never leave the cache: tokens are worked off in pieces, and backward computes
them anew instead of keeping them, which is as fast on a CPU and saves most of a layer's memory.

Legend: n tokens, N width, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from espnet2_sepx.layers.kernels import (
    compute_dtype,
    matmul_t,
    pieces,
    weight_gradient,
    without_autocast,
)

Weights = Sequence[Tensor]
"""W1 (H, N), b1 (H,), W2 (N, H), b2 (N,)."""


class FeedForward(nn.Module):
    """Dense feed-forward. Shape: ``(..., N) -> (..., N)``."""

    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, expansion * dim)
        self.linear2 = nn.Linear(expansion * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        tokens = x.reshape(-1, x.shape[-1]).to(dtype)
        return _Dense.apply(tokens, *(p.to(dtype) for p in self._weights())).view(x.shape)

    def add_to(self, x: Tensor, norm: nn.LayerNorm, factor: float) -> None:
        """x += factor * ffn(norm(x)) in place, outside of any graph."""
        tokens = x.view(-1, x.shape[-1])
        weights = self._weights()
        for piece in pieces(0, tokens.shape[0], x.device):
            target = tokens[piece]
            y = F.layer_norm(target, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            target.add_(expert_forward(y, weights), alpha=factor)

    def _weights(self) -> Weights:
        first, second = self.linear1, self.linear2
        return first.weight, first.bias, second.weight, second.bias


def expert_forward(x: Tensor, weights: Weights) -> Tensor:
    """``(n, N) -> (n, N)`` outside of any graph."""
    w1, b1, w2, b2 = weights
    return matmul_t(F.silu(matmul_t(x, w1, b1), inplace=True), w2, b2)


def expert_backward(x: Tensor, grad: Tensor, weights: Weights, totals: Weights) -> Tensor:
    """Gradient of x ``(n, N)``; adds those of the weights to ``totals``."""
    w1, b1, w2, _ = weights
    before = matmul_t(x, w1, b1)
    totals[2].add_(weight_gradient(grad, F.silu(before)))
    totals[3].add_(grad.sum(0))
    d_before = torch.ops.aten.silu_backward(matmul_t(grad, w2.t()), before)
    totals[0].add_(weight_gradient(d_before, x))
    totals[1].add_(d_before.sum(0))
    return matmul_t(d_before, w1.t())


class _Dense(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, x, *weights):  # type: ignore[no-untyped-def]
        y = torch.empty_like(x)
        for piece in pieces(0, x.shape[0], x.device):
            y[piece] = expert_forward(x[piece], weights)
        ctx.save_for_backward(x, *weights)
        return y

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, *weights = ctx.saved_tensors
        d_x = torch.empty_like(x)
        totals = [torch.zeros_like(w) for w in weights]
        for piece in pieces(0, x.shape[0], x.device):
            d_x[piece] = expert_backward(x[piece], grad[piece], weights, totals)
        return d_x, *totals
