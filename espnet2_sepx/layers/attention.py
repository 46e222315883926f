"""Multi-head self-attention with learned relative positions, in cache-sized pieces.

score(i, j) = (q_i . k_j + q_i . r_clip(i-j)) / sqrt(d), one table r per layer, shared by the heads.

Keys and values are reversed in time inside (softmax does not mind): with j' = n-1-j the relative
vector of query i and key j' is row i + j' of the extended table, so all n x n of them are an
overlapping *view* of 2n-1 rows. Nothing is gathered, and the product with the queries is one batched
matrix product over query positions.

Legend: B batch, T frames, K bands, N channels, H heads, d head width, n sequence length, c rows of a
piece, P clip distance.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_sepx.layers.norms import Padding

PIECE_SCORES = {"cpu": 1 << 20, "cuda": 1 << 27}
"""Scores (rows x heads x queries x keys) held at a time: about a core's cache, or plenty."""


def piece_rows(heads: int, length: int, device: str) -> int:
    return max(1, PIECE_SCORES.get(device, PIECE_SCORES["cuda"]) // (heads * length * length))


class _RelativeAttention(torch.autograd.Function):
    """Attention over axis n of ``qkv (O, I, n, 3, H, d)``; outer item o uses its first
    ``lengths[o]`` positions, the output is zero behind. Scores are recomputed in backward."""

    @staticmethod
    def forward(ctx, qkv: Tensor, table: Tensor, lengths: tuple[int, ...]) -> Tensor:  # type: ignore
        outer, inner, length, _, heads, dim = qkv.shape
        out = qkv.new_zeros(outer, inner, length, heads, dim)
        ctx.save_for_backward(qkv, table)
        ctx.lengths = lengths
        for item, n in enumerate(lengths):
            extended = _extended_table(table, n)
            step = piece_rows(heads, n, qkv.device.type)
            for start in range(0, inner, step):
                q, k, v = _split(qkv[item, start : start + step, :n])
                bias = _relative_scores(q, extended)
                rows = q.shape[0] // heads
                y = F.scaled_dot_product_attention(
                    q.view(rows, heads, n, dim),
                    k.view(rows, heads, n, dim),
                    v.view(rows, heads, n, dim),
                    attn_mask=bias.view(n, rows, heads, n).permute(1, 2, 0, 3),
                    scale=1.0,
                )
                out[item, start : start + step, :n] = y.transpose(1, 2)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore
        qkv, table = ctx.saved_tensors
        outer, inner, length, _, heads, dim = qkv.shape
        d_qkv = torch.zeros_like(qkv)
        d_table = torch.zeros_like(table)
        for item, n in enumerate(ctx.lengths):
            extended = _extended_table(table, n)
            relative = torch.as_strided(extended, (n, n, dim), (dim, dim, 1))
            d_wide = table.new_zeros(n, 2 * n - 1, dim)  # row i, column i + j'
            d_relative = torch.as_strided(d_wide, (n, n, dim), (2 * n * dim, dim, 1))
            step = piece_rows(heads, n, qkv.device.type)
            for start in range(0, inner, step):
                rows = slice(start, start + step)
                q, k, v = _split(qkv[item, rows, :n])
                g = grad[item, rows, :n].transpose(1, 2).reshape(-1, n, dim)
                scores = torch.bmm(q, k.transpose(1, 2))
                scores.transpose(0, 1).add_(_relative_scores(q, extended))
                p = torch.softmax(scores, -1)
                d_v = torch.bmm(p.transpose(1, 2), g)
                d_scores = torch._softmax_backward_data(
                    torch.bmm(g, v.transpose(1, 2)), p, -1, p.dtype
                )
                d_q = torch.bmm(d_scores, k)
                d_q.transpose(0, 1).add_(torch.bmm(d_scores.transpose(0, 1), relative))
                d_k = torch.bmm(d_scores.transpose(1, 2), q)
                d_relative.baddbmm_(d_scores.permute(1, 2, 0), q.transpose(0, 1))
                for part, d in enumerate((d_q / math.sqrt(dim), d_k.flip(1), d_v.flip(1))):
                    target = d_qkv[item, rows, :n, part]
                    target.copy_(d.view(-1, heads, n, dim).transpose(1, 2))
            clip = table.shape[0] // 2
            index = torch.arange(-(n - 1), n, device=table.device).clamp_(-clip, clip) + clip
            d_table.index_add_(0, index, d_wide.sum(0))
        return d_qkv, d_table, None


def _extended_table(table: Tensor, n: int) -> Tensor:
    """Rows r_clip(m) for m = -(n-1) .. n-1."""
    clip = table.shape[0] // 2
    index = torch.arange(-(n - 1), n, device=table.device).clamp_(-clip, clip) + clip
    return table.index_select(0, index)


def _split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(c, n, 3, H, d)`` to scaled queries, reversed keys, reversed values ``(c H, n, d)``."""
    rows, n, _, heads, dim = qkv.shape
    q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous().view(3, rows * heads, n, dim)
    return q / math.sqrt(dim), k.flip(1), v.flip(1)


def _relative_scores(q: Tensor, extended: Tensor) -> Tensor:
    """q_i . r_clip(i-j) as ``(n, c H, n)``: query position first."""
    n, dim = q.shape[1:]
    relative = torch.as_strided(extended, (n, n, dim), (dim, dim, 1))
    return torch.bmm(q.transpose(0, 1), relative.transpose(1, 2))


class RelativeAttention(nn.Module):
    """Self-attention along one axis of the time-frequency plane.

    Shape: ``(B, T, K, N) -> (B, T, K, N)``.

    Args:
        dim: N.
        num_heads: H.
        head_dim: d; the inner width H d need not be N.
        max_rel_pos: distances beyond it share one relative vector.
        axis: "time" or "frequency".
    """

    def __init__(
        self, dim: int, num_heads: int, head_dim: int, max_rel_pos: int, axis: str
    ) -> None:
        super().__init__()
        self.axis = axis
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False)
        self.out = nn.Linear(num_heads * head_dim, dim)
        self.rel_pos = nn.Parameter(torch.empty(2 * max_rel_pos + 1, head_dim))
        nn.init.normal_(self.rel_pos, std=0.02)

    def forward(self, x: Tensor, padding: Padding | None = None) -> Tensor:
        batch, frames, bands, _ = x.shape
        qkv = self.qkv(x)
        table = self.rel_pos.to(qkv.dtype)
        qkv = qkv.view(batch, frames, bands, 3, self.num_heads, self.head_dim)
        if self.axis == "time":
            lengths = (frames,) * batch if padding is None else padding.lengths
            y = _RelativeAttention.apply(qkv.transpose(1, 2), table, lengths).transpose(1, 2)
        else:
            y = _RelativeAttention.apply(qkv.flatten(0, 1)[None], table, (bands,))
        return self.out(y.reshape(batch, frames, bands, -1))
