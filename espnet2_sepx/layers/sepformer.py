"""The dual-path block of SepFormer.

Legend: B batch, S chunks, K chunk size, F channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espnet2_sepx.layers.dual_path import GlobalNorm
from espnet2_sepx.layers.kernels import may_infer
from espnet2_sepx.layers.transformer import Span, TransformerStack, row_groups, sinusoids


class DualPathBlock(nn.Module):
    """Within chunks, then across: x <- norm(stack(x + positions)) + x on either path.

    Shape: ``(B, S, K, F) -> (B, S, K, F)``. The norms run over all real chunks of an item,
    frames of padding in them included.
    """

    def __init__(
        self,
        dim: int,
        intra_layers: int,
        inter_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.intra = TransformerStack(intra_layers, dim, num_heads, ffn_dim, dropout)
        self.intra_norm = GlobalNorm(dim)
        self.inter = TransformerStack(inter_layers, dim, num_heads, ffn_dim, dropout)
        self.inter_norm = GlobalNorm(dim)

    def forward(self, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        """``counts``: real chunks of each item."""
        fast = may_infer(self, x)
        y = self._infer_intra(x) if fast else self._intra(x)
        y = self._normalise(self.intra_norm, y, counts) + x
        z = self._infer_inter(y, counts) if fast else self._inter(y, counts)
        return self._normalise(self.inter_norm, z, counts) + y

    def _intra(self, x: Tensor) -> Tensor:
        positions = sinusoids(0, x.shape[2], x.shape[3], x)
        return self.intra((x + positions).flatten(0, 1)).view(x.shape)

    def _inter(self, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        batch, chunks, size, dim = x.shape
        positions = sinusoids(0, chunks, dim, x)
        lengths = tuple(count for count in counts for _ in range(size))
        rows = (x.transpose(1, 2) + positions).flatten(0, 1)  # (B K, S, F)
        y = self.inter(rows, Span(lengths=lengths))
        return y.unflatten(0, (batch, size)).transpose(1, 2).contiguous()

    def _infer_intra(self, x: Tensor) -> Tensor:
        """The same in groups of rows that stay in cache."""
        positions = sinusoids(0, x.shape[2], x.shape[3], x)
        rows = x.flatten(0, 1)
        out = torch.empty_like(rows)
        for group in row_groups(rows.shape[0], rows.shape[1], x.device.type):
            out[group] = self.intra.infer(rows[group] + positions)
        return out.view(x.shape)

    def _infer_inter(self, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        positions = sinusoids(0, x.shape[1], x.shape[3], x)
        out = torch.zeros_like(x) if min(counts) < x.shape[1] else torch.empty_like(x)
        for item, count in enumerate(counts):
            for group in row_groups(x.shape[2], count, x.device.type):
                rows = x[item, :count, group].transpose(0, 1).contiguous() + positions[:count]
                out[item, :count, group] = self.inter.infer(rows).transpose(0, 1)
        return out

    @staticmethod
    def _normalise(norm: GlobalNorm, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        whole = min(counts) == x.shape[1]
        lengths = None if whole else tuple(count * x.shape[2] for count in counts)
        return norm(x.flatten(1, 2), lengths).view(x.shape)
