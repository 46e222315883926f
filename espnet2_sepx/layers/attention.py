"""Multi-head self-attention with learned relative positions, piece by piece.

score(i, j) = (q_i . k_j + q_i . r_clip(i-j)) / sqrt(d), one table r per layer, shared by the heads.

* Keys and values are reversed in time (softmax does not mind): with j' = n-1-j the relative vector
  of query i and key j' is row i + j' of an extended table, so the n x n vectors are an overlapping
  *view* of 2n-1 rows. Nothing is gathered; one product, batched over i, meets the queries.
* Rows are worked off in pieces whose scores stay near the processor's cache, long sequences also in
  blocks of queries, so memory grows with n, not with n squared. Backward computes the scores anew.
* Scores count in units of log2 (the factor is in the scaled queries): exp2 is several times faster
  than exp on a CPU. All of it runs in at least float32.

Legend: B batch, T frames, K bands, N channels, H heads, d head width, n sequence length, O outer
and I inner rows, c rows of a piece, r = c H, b queries of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from espnet2_sepx.layers.cache import EvalCache
from espnet2_sepx.layers.kernels import LOG2_E, linear, matmul_t, without_autocast
from espnet2_sepx.layers.norms import Padding

PIECE_SCORES = {"cpu": 3 << 18, "cuda": 1 << 27}
"""Scores (rows x heads x queries x keys) held at a time: about a core's cache, or plenty. Backward
holds two such arrays and takes half of it."""
SHORT = 100
"""Below this length, products are fastest into contiguous memory, followed by a strided sum."""


class RelativeAttention(EvalCache):
    """Self-attention along one axis of the time-frequency plane.

    Shape: ``(B, T, K, N) -> (B, T, K, N)``.

    Args:
        dim: N.
        num_heads: H.
        head_dim: d; the inner width H d need not be N.
        max_rel_pos: P, the distance from which on all share one relative vector.
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
        sequences, lengths = self._sequences(x, padding)
        reverse = sequences.flip(1)
        weights = self._scaled_weights()
        q, k, v = (
            linear(tokens, weight).unflatten(-1, (self.num_heads, self.head_dim))
            for tokens, weight in zip((sequences, reverse, reverse), weights, strict=True)
        )
        y = _RelativeAttention.apply(q, k, v, self.rel_pos, lengths).flatten(3)  # (O, n, I, H d)
        y = linear(y, self.out.weight, self.out.bias)
        return y if self.axis == "time" else y[0].transpose(0, 1).reshape(x.shape)

    def add_to(self, x: Tensor, norm: nn.LayerNorm, padding: Padding | None) -> None:
        """x += attention(norm(x)) in place, outside of any graph; in pieces."""
        sequences, lengths = self._sequences(x, padding)
        weights = self.cached("weights", self._scaled_weights)
        scratch = _scratch(x, self.num_heads, max(lengths))
        for item, n in enumerate(lengths):
            extended = _extended_table(self.rel_pos, n)
            for piece in _pieces(sequences.shape[2], self.num_heads * n * n, x.device):
                target = sequences[item, :n, piece]  # (n, c, N), a view
                y = F.layer_norm(target, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
                forward, backward = y.flatten(0, 1), y.flip(0).flatten(0, 1)
                q, k, v = (
                    matmul_t(tokens, weight).view(n, -1, self.head_dim)
                    for tokens, weight in zip((forward, backward, backward), weights, strict=True)
                )
                y = _attend(q, k, v, extended, scratch)[0].view(forward.shape[0], -1)
                target += matmul_t(y, self.out.weight, self.out.bias).view(target.shape)

    def _sequences(self, x: Tensor, padding: Padding | None) -> tuple[Tensor, tuple[int, ...]]:
        """A view ``(O, n, I, ...)`` of ``x (B, T, K, ...)`` with the attended axis second, and how
        much of it is real for each outer item."""
        if self.axis == "time":
            lengths = (x.shape[1],) * x.shape[0] if padding is None else padding.lengths
            return x, lengths
        return x.flatten(0, 1).transpose(0, 1)[None], (x.shape[2],)

    def _scaled_weights(self) -> tuple[Tensor, ...]:
        """Query (with its factor), key and value projections, each (H d, N)."""
        q, k, v = self.qkv.weight.chunk(3)
        return q * (LOG2_E / math.sqrt(self.head_dim)), k, v


class _RelativeAttention(torch.autograd.Function):
    """Attention over axis n of queries, reversed keys, reversed values ``(O, n, I, H, d)`` each.

    Queries carry the factor log2(e) / sqrt(d). Outer item o attends within its first ``lengths[o]``
    positions (the last ones of keys and values); the output is zero behind.
    """

    @staticmethod
    @without_autocast
    def forward(ctx, q, k, v, table, lengths):  # type: ignore[no-untyped-def]
        _, full, inner, heads, dim = q.shape
        dtype = torch.promote_types(q.dtype, torch.float32)
        out = torch.zeros_like(q) if min(lengths) < full else torch.empty_like(q)
        normaliser = q.new_empty(q.shape[:4], dtype=dtype)
        scratch = _scratch(normaliser, heads, max(lengths))
        for item, n in enumerate(lengths):
            extended = _extended_table(table.to(dtype), n)
            for piece in _pieces(inner, heads * n * n, q.device):
                part = (item, slice(n), piece)
                y, lse = _attend(*_operands(q, k, v, item, n, piece, dtype), extended, scratch)
                out[part] = y.view(n, -1, heads, dim)
                normaliser[part] = lse.view(n, -1, heads)
        ctx.save_for_backward(q, k, v, table, out, normaliser)
        ctx.lengths = lengths
        return out

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, table, out, normaliser = ctx.saved_tensors
        _, full, inner, heads, dim = q.shape
        dtype = normaliser.dtype
        empty = torch.zeros_like if min(ctx.lengths) < full else torch.empty_like
        d_q, d_k, d_v = empty(q), empty(k), empty(v)
        d_table = torch.zeros_like(table, dtype=dtype)
        scratch = _scratch(normaliser, heads, max(ctx.lengths))
        for item, n in enumerate(ctx.lengths):
            extended = _extended_table(table.to(dtype), n)
            d_extended = torch.zeros_like(extended)
            for block in _pieces(n, 2 * heads * n, q.device):
                d_relative = extended.new_zeros(block.stop - block.start, n, dim)
                for piece in _pieces(inner, 2 * heads * n * n, q.device):
                    part = (item, block, piece)
                    d_out = grad[part].to(dtype)  # (b, c, H, d)
                    dot = (d_out * out[part]).sum(-1).flatten(1)  # (b, r)
                    d_queries, d_keys, d_values = _attend_backward(
                        *_operands(q, k, v, item, n, piece, dtype),
                        block,
                        _relative(extended, block, n),
                        normaliser[part].flatten(1),
                        d_out.reshape(d_out.shape[0], -1, dim),
                        dot,
                        d_relative,
                        scratch,
                    )
                    d_q[part] = d_queries.view(d_out.shape)
                    for total, d in ((d_k, d_keys), (d_v, d_values)):
                        target = total[item, full - n :, piece]
                        if block.start == 0:
                            target.copy_(d.reshape(target.shape))
                        else:
                            target += d.reshape(target.shape)
                _add_diagonals(d_extended[block.start :], d_relative)
            d_table.index_add_(0, _clipped(table, n), d_extended)
        return d_q, d_k, d_v, d_table.to(table.dtype), None


def _operands(
    q: Tensor, k: Tensor, v: Tensor, item: int, n: int, piece: slice, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Contiguous ``(n, r, d)`` of one item's piece."""
    first, last = (item, slice(n), piece), (item, slice(q.shape[1] - n, None), piece)
    queries, keys, values = (
        x.to(dtype).reshape(n, -1, x.shape[-1]).contiguous() for x in (q[first], k[last], v[last])
    )
    return queries, keys, values


def _pieces(rows: int, scores_per_row: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows that hold about ``PIECE_SCORES`` scores each, one row at least."""
    size = max(1, PIECE_SCORES.get(device.type, PIECE_SCORES["cuda"]) // scores_per_row)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _clipped(table: Tensor, n: int) -> Tensor:
    """Rows of ``table (2P+1, d)`` for the distances -(n-1) .. n-1."""
    clip = table.shape[0] // 2
    return torch.arange(1 - n, n, device=table.device).clamp_(-clip, clip) + clip


def _extended_table(table: Tensor, n: int) -> Tensor:
    return table.index_select(0, _clipped(table, n))  # (2n-1, d)


def _relative(extended: Tensor, queries: slice, n: int) -> Tensor:
    """r_clip(i-j) as an overlapping view (b, n, d): query i, reversed key j' is row i + j'."""
    dim = extended.shape[1]
    count = queries.stop - queries.start
    return extended.as_strided((count, n, dim), (dim, dim, 1), queries.start * dim)


def _scratch(x: Tensor, heads: int, n: int) -> Tensor:
    """Memory for the scores of any piece and block, taken once: fresh pages are not free."""
    limit = PIECE_SCORES.get(x.device.type, PIECE_SCORES["cuda"])
    return x.new_empty(max(limit, heads * n))


def _scores(q: Tensor, k: Tensor, relative: Tensor, scratch: Tensor) -> Tensor:
    """q_i . k_j + q_i . r_(i-j) as (b, r, n), from ``q (b, r, d)``, ``k (n, r, d)``."""
    scores = scratch[: q.shape[0] * q.shape[1] * k.shape[0]].view(*q.shape[:2], -1)
    torch.bmm(q, relative.transpose(1, 2), out=scores)
    by_row = scores.transpose(0, 1)  # (r, b, n)
    q, k_t = q.transpose(0, 1), k.permute(1, 2, 0)
    if k.shape[0] < SHORT:
        by_row += torch.bmm(q, k_t)
    else:
        by_row.baddbmm_(q, k_t)
    return scores


def _attend(
    q: Tensor, k: Tensor, v: Tensor, extended: Tensor, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs ``(n, r, d)`` and log2 of the softmax denominators ``(n, r)``; inputs (n, r, d)."""
    n, rows, _ = q.shape
    out = torch.empty_like(q)
    normaliser = q.new_empty(n, rows)
    for block in _pieces(n, rows * n, q.device):
        scores = _scores(q[block], k, _relative(extended, block, n), scratch)
        top = scores.amax(-1, keepdim=True)
        weights = scores.sub_(top).exp2_()
        total = weights.sum(-1, keepdim=True)
        torch.div(
            torch.bmm(weights.transpose(0, 1), v.transpose(0, 1)).transpose(0, 1),
            total,
            out=out[block],
        )
        normaliser[block] = (total.log2_() + top).squeeze(-1)
    return out, normaliser


def _attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: slice,
    relative: Tensor,
    normaliser: Tensor,
    d_out: Tensor,
    dot: Tensor,
    d_relative: Tensor,
    scratch: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One block of queries: gradients of its q, and its part of those of k and v; adds to
    ``d_relative``.

    With weights p = 2^scores: d_scores = ln 2 p (d_out . v - dot), dot = d_out . out.
    """
    p = _scores(q[block], k, relative, scratch).sub_(normaliser[:, :, None]).exp2_()  # (b, r, n)
    d_out = d_out.transpose(0, 1)  # (r, b, d)
    d_v = torch.bmm(p.permute(1, 2, 0), d_out).transpose(0, 1)
    d_p = torch.bmm(d_out.mul(1.0 / LOG2_E), v.permute(1, 2, 0))
    d_p -= dot.t()[:, :, None] * (1.0 / LOG2_E)
    d_s = p.mul_(d_p.transpose(0, 1))
    d_relative.baddbmm_(d_s.transpose(1, 2), q[block])
    d_k = torch.bmm(d_s.permute(1, 2, 0), q[block].transpose(0, 1)).transpose(0, 1)
    d_q = torch.bmm(d_s, relative)
    d_q += torch.bmm(d_s.transpose(0, 1), k.transpose(0, 1)).transpose(0, 1)
    return d_q, d_k, d_v


def _add_diagonals(target: Tensor, x: Tensor) -> None:
    """target[i + j] += x[i, j] for ``x (b, n, d)``."""
    b, n, dim = x.shape
    wide = x.new_zeros(b, b + n - 1, dim)
    wide.as_strided((b, n, dim), ((b + n) * dim, dim, 1)).copy_(x)
    target[: b + n - 1] += wide.sum(0)
