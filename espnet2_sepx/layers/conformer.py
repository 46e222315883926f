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
from espnet2_sepx.layers.cache import EvalCache
from espnet2_sepx.layers.feed_forward import FeedForward
from espnet2_sepx.layers.kernels import linear, matmul_t, may_infer, pieces
from espnet2_sepx.layers.moe import MoEFeedForward
from espnet2_sepx.layers.norms import MaskedBatchNorm, Padding
from espnet2_sepx.layers.routing import RoutingStats


class ConvModule(EvalCache):
    """Gated pointwise, depthwise along one axis, batch norm, Swish, pointwise.

    The depthwise convolution reads (B, T, K, C) as a channels-last image, so no axis is moved.

    Shape: ``(B, T, K, N) -> (B, T, K, N)``.
    """

    def __init__(self, dim: int, expansion: int, kernel: int, axis: str) -> None:
        super().__init__()
        inner = expansion * dim
        self.axis = axis
        self.pointwise1 = nn.Linear(dim, 2 * inner)
        self.depthwise = nn.Conv1d(inner, inner, kernel, groups=inner)
        self.norm = MaskedBatchNorm(inner)
        self.pointwise2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor, padding: Padding | None = None) -> Tensor:
        y = F.glu(linear(x, self.pointwise1.weight, self.pointwise1.bias), dim=-1)
        if padding is not None and self.axis == "time":
            y = y * padding.like(y)  # valid edges see the zeros of an unpadded run
        y = self.norm(self._depthwise(y, self.depthwise.weight, self.depthwise.bias), padding)
        return linear(F.silu(y), self.pointwise2.weight, self.pointwise2.bias)

    def add_to(self, x: Tensor, norm: nn.LayerNorm, padding: Padding | None) -> None:
        """x += conv(norm(x)) in place, outside of any graph, batch norm folded away."""
        tokens = x.view(-1, x.shape[-1])
        gated = x.new_empty(*x.shape[:-1], self.pointwise2.in_features)
        flat = gated.view(tokens.shape[0], -1)
        for piece in pieces(0, tokens.shape[0], x.device):
            y = F.layer_norm(tokens[piece], norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            y = matmul_t(y, self.pointwise1.weight, self.pointwise1.bias)
            flat[piece] = F.glu(y, dim=-1)
        if padding is not None and self.axis == "time":
            gated *= padding.like(gated)
        flat = self._depthwise(gated, *self.cached("folded", self._folded)).view(flat.shape)
        for piece in pieces(0, tokens.shape[0], x.device):
            y = F.silu(flat[piece], inplace=True)
            tokens[piece] += matmul_t(y, self.pointwise2.weight, self.pointwise2.bias)

    def _depthwise(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        channels, _, kernel = weight.shape
        image, size, same = x, (kernel, 1), (kernel // 2, 0)
        if self.axis == "frequency":
            if torch.is_grad_enabled():  # backward is many times faster along an image's height
                image = x.flatten(0, 1).unsqueeze(2)
            else:
                size, same = (1, kernel), (0, kernel // 2)
        y = F.conv2d(
            image.permute(0, 3, 1, 2),
            weight.view(channels, 1, *size),
            bias,
            padding=same,
            groups=channels,
        )
        return y.permute(0, 2, 3, 1).reshape(x.shape)

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Depthwise weights and bias that include the batch norm's running statistics."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert self.depthwise.bias is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = (self.depthwise.bias - norm.running_mean) * scale + norm.bias
        return self.depthwise.weight * scale[:, None, None], bias


class ConformerModule(nn.Module):
    """Macaron Conformer module; both feed-forwards are dense or both are mixtures of experts.

    Shape: ``(B, T, K, N) -> (B, T, K, N)``, and the routing of its mixtures.

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

        def feed_forward() -> FeedForward | MoEFeedForward:
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
        if may_infer(self, x):
            return self._infer(x.clone(memory_format=torch.contiguous_format), padding)
        stats: list[RoutingStats] = []
        y = self._feed_forward(self.ffn1, self.norm_ffn1(x), padding, stats)
        x = torch.add(x, self.dropout(y), alpha=0.5)
        x = x + self.dropout(self.attention(self.norm_attention(x), padding))
        x = x + self.dropout(self.conv(self.norm_conv(x), padding))
        y = self._feed_forward(self.ffn2, self.norm_ffn2(x), padding, stats)
        return self.norm_out(torch.add(x, self.dropout(y), alpha=0.5)), stats

    def _infer(self, x: Tensor, padding: Padding | None) -> tuple[Tensor, list[RoutingStats]]:
        """The same on a tensor of our own, in place and in pieces that stay in cache."""
        stats: list[RoutingStats] = []
        self._add_feed_forward(self.ffn1, x, self.norm_ffn1, padding, stats)
        self.attention.add_to(x, self.norm_attention, padding)
        self.conv.add_to(x, self.norm_conv, padding)
        self._add_feed_forward(self.ffn2, x, self.norm_ffn2, padding, stats)
        return self.norm_out(x), stats

    @staticmethod
    def _feed_forward(
        ffn: FeedForward | MoEFeedForward,
        x: Tensor,
        padding: Padding | None,
        stats: list[RoutingStats],
    ) -> Tensor:
        if not isinstance(ffn, MoEFeedForward):
            return ffn(x)
        y, routing = ffn(x, padding)
        stats.append(routing)
        return y

    @staticmethod
    def _add_feed_forward(
        ffn: FeedForward | MoEFeedForward,
        x: Tensor,
        norm: nn.LayerNorm,
        padding: Padding | None,
        stats: list[RoutingStats],
    ) -> None:
        if isinstance(ffn, MoEFeedForward):
            stats.append(ffn.add_to(x, norm, 0.5, padding))
        else:
            ffn.add_to(x, norm, 0.5)
