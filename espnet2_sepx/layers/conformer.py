"""Conformer module on the time-frequency plane (TF-MoE, sections 2.1 and 2.2).

The layout stays (B, T, K, N) with N contiguous on both axes; only attention and the depthwise
convolution know along which axis they run.

Legend: B batch, T frames, K bands, N channels, H hidden width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_sepx.layers.attention import RelativeAttention
from espnet2_sepx.layers.moe import MoEFeedForward, RoutingStats
from espnet2_sepx.layers.norms import MaskedBatchNorm, Padding


class FeedForward(nn.Module):
    """W2 swish(W1 x + b1) + b2 (eq. 1). Shape: ``(..., N) -> (..., N)``."""

    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, expansion * dim)
        self.linear2 = nn.Linear(expansion * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.silu(self.linear1(x)))


class ConvModule(nn.Module):
    """Gated pointwise, depthwise along one axis, batch norm, Swish, pointwise.

    Shape: ``(B, T, K, N) -> (B, T, K, N)``.
    """

    def __init__(self, dim: int, expansion: int, kernel: int, axis: str) -> None:
        super().__init__()
        inner = expansion * dim
        size = (kernel, 1) if axis == "time" else (1, kernel)
        same = (kernel // 2, 0) if axis == "time" else (0, kernel // 2)
        self.axis = axis
        self.pointwise1 = nn.Linear(dim, 2 * inner)
        self.depthwise = nn.Conv2d(inner, inner, size, padding=same, groups=inner)
        self.norm = MaskedBatchNorm(inner)
        self.pointwise2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor, padding: Padding | None = None) -> Tensor:
        y = F.glu(self.pointwise1(x), dim=-1)
        if padding is not None and self.axis == "time":
            y = y * padding.like(y)  # valid edges see the zeros of an unpadded run
        y = self.depthwise(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # channels-last, no copy
        return self.pointwise2(F.silu(self.norm(y, padding)))


class ConformerModule(nn.Module):
    """Macaron Conformer module; both feed-forwards are dense or both are mixtures of experts.

    Shape: ``(B, T, K, N) -> (B, T, K, N)``.

    Args:
        dim: N.
        axis: "time" or "frequency", the axis of attention and convolution.
        experts: options of MoEFeedForward, None for dense feed-forwards.
        (others as in the separator)
    """

    def __init__(
        self,
        dim: int,
        axis: str,
        *,
        experts: dict | None = None,
        num_heads: int = 4,
        head_dim: int = 16,
        ffn_expansion: int = 4,
        conv_kernel: int = 15,
        conv_expansion: int = 2,
        max_rel_pos: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()

        def feed_forward() -> nn.Module:
            if experts is None:
                return FeedForward(dim, ffn_expansion)
            return MoEFeedForward(dim, axis=axis, expansion=ffn_expansion, **experts)

        self.norm_ffn1 = nn.LayerNorm(dim)
        self.ffn1 = feed_forward()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = RelativeAttention(dim, num_heads, head_dim, max_rel_pos, axis)
        self.norm_conv = nn.LayerNorm(dim)
        self.conv = ConvModule(dim, conv_expansion, conv_kernel, axis)
        self.norm_ffn2 = nn.LayerNorm(dim)
        self.ffn2 = feed_forward()
        self.norm_out = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, padding: Padding | None = None
    ) -> tuple[Tensor, list[RoutingStats]]:
        stats: list[RoutingStats] = []
        x = x + 0.5 * self._feed_forward(self.ffn1, self.norm_ffn1(x), padding, stats)
        x = x + self.dropout(self.attention(self.norm_attention(x), padding))
        x = x + self.dropout(self.conv(self.norm_conv(x), padding))
        x = x + 0.5 * self._feed_forward(self.ffn2, self.norm_ffn2(x), padding, stats)
        return self.norm_out(x), stats

    def _feed_forward(
        self, ffn: nn.Module, x: Tensor, padding: Padding | None, stats: list[RoutingStats]
    ) -> Tensor:
        if isinstance(ffn, MoEFeedForward):
            y, routing = ffn(x, padding)
            stats.append(routing)
        else:
            y = ffn(x)
        return self.dropout(y)
