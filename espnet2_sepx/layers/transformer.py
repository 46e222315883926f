"""Pre-norm Transformer encoder of the SepFormer family, after SpeechBrain's.

    x += attention(norm1(x));   x += W2 relu(W1 norm2(x) + b1) + b2

Rows (chunks, or positions across chunks) are independent sequences. In inference a stack works in
place on a few rows at a time, so that the activations of a layer stay in the processor's cache and
memory does not grow with the number of rows.

Legend: R rows, n sequence length, F channels, H heads, d = F/H head width, D feed-forward width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_sepx.layers.kernels import linear, matmul_t, may_infer

NORM_EPS = 1e-6
WINDOW_QUERIES = 256
"""Queries per block of windowed attention; a block sees its own and ``window - 1`` more keys."""
GROUP_TOKENS = {"cpu": 1200, "cuda": 1 << 22}
"""Positions of all rows that inference takes through a stack at a time."""
FFN_TOKENS = {"cpu": 256, "cuda": 1 << 20}
"""Tokens per piece of a feed-forward in inference: hidden activations stay near the cache."""


def sinusoids(start: int, count: int, dim: int, like: Tensor) -> Tensor:
    """Positional encoding of positions start .. start + count - 1, ``(count, dim)``.

    Even channels sin(pos / 10000^(c/F)), odd channels the cosine with the same frequency; computed
    in float32 and cast like ``like``.
    """
    position = torch.arange(start, start + count, dtype=torch.float32, device=like.device)
    channel = torch.arange(0, dim, 2, dtype=torch.float32, device=like.device)
    angle = position[:, None] * torch.exp(channel * -(math.log(10000.0) / dim))
    table = torch.stack((angle.sin(), angle.cos()), -1).flatten(1)
    return table[:, :dim].to(like.dtype)


@dataclass(frozen=True)
class Span:
    """Which positions of its row a query attends to.

    Attributes:
        causal: only itself and those before.
        window: of these the last ``window`` (None: all); needs ``causal``.
        lengths: valid positions per row (None: all); queries behind give numbers without meaning.
    """

    causal: bool = False
    window: int | None = None
    lengths: tuple[int, ...] | None = None


EVERYTHING = Span()


def attend(q: Tensor, k: Tensor, v: Tensor, span: Span = EVERYTHING) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for ``q, k, v (R, H, n, d)``."""
    n = q.shape[2]
    if span.causal:  # valid queries never reach what lies behind their row's length
        if span.window is None or span.window >= n:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return _attend_window(q, k, v, span.window)
    mask = None
    if span.lengths is not None and min(span.lengths) < n:
        lengths = torch.tensor(span.lengths, device=q.device)
        mask = (torch.arange(n, device=q.device) < lengths[:, None])[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _attend_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention to the last ``window`` positions, block by block of queries."""
    out = []
    for start in range(0, q.shape[2], WINDOW_QUERIES):
        stop = min(start + WINDOW_QUERIES, q.shape[2])
        first = max(0, start - window + 1)
        distance = torch.arange(start, stop, device=q.device)[:, None] - torch.arange(
            first, stop, device=q.device
        )
        out.append(
            F.scaled_dot_product_attention(
                q[:, :, start:stop],
                k[:, :, first:stop],
                v[:, :, first:stop],
                attn_mask=(distance >= 0) & (distance < window),
            )
        )
    return torch.cat(out, 2)


class KeyValueCache:
    """Keys and values that a causal layer has seen, ``(R, H, n, d)``; all, or the last ``window``.

    Memory is taken in steps that double, or once for twice the window.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self.start, self.stop = 0, 0  # the part in use
        self._memory: Tensor | None = None  # (2, R, H, capacity, d)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions; returns all that may be attended to, these included.

        With a window, positions come one at a time.
        """
        new = k.shape[2]
        if self.window is not None:
            if new != 1:
                raise ValueError(f"a windowed cache takes one position at a time, got {new}")
            self.start = max(self.start, self.stop + 1 - self.window)
        memory = self._with_room(k, new)
        memory[0, :, :, self.stop : self.stop + new] = k
        memory[1, :, :, self.stop : self.stop + new] = v
        self.stop += new
        keys, values = memory[:, :, :, self.start : self.stop].unbind(0)
        return keys, values

    def _with_room(self, like: Tensor, new: int) -> Tensor:
        """The memory with space for ``new`` positions behind ``stop``."""
        old, used = self._memory, self.stop - self.start
        if old is not None and self.stop + new <= old.shape[3]:
            return old
        rows, heads, _, width = like.shape
        capacity = 2 * (self.window if self.window is not None else used + new)
        if old is not None and capacity == old.shape[3]:
            memory = old
        else:
            memory = like.new_empty(2, rows, heads, capacity, width)
        if old is not None:
            memory[:, :, :, :used] = old[:, :, :, self.start : self.stop].clone()
        self._memory, self.start, self.stop = memory, 0, used
        return memory

    @property
    def nbytes(self) -> int:
        return 0 if self._memory is None else self._memory.nbytes


class SelfAttention(nn.Module):
    """Multi-head self-attention with one packed projection. Shape: ``(R, n, F) -> (R, n, F)``."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide the {dim} channels, got {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)  # rows: all of q, of k, of v; in each, head by head
        self.out = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, span: Span = EVERYTHING) -> Tensor:
        q, k, v = self.heads(linear(x, self.qkv.weight, self.qkv.bias))
        return linear(self.joined(attend(q, k, v, span)), self.out.weight, self.out.bias)

    def step(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """Causal attention of new ``x (R, n, F)`` to what is in ``cache`` and to themselves."""
        q, k, v = self.heads(self.qkv(x))
        seen = cache.stop - cache.start
        keys, values = cache.append(k, v)
        mask = None
        if x.shape[1] > 1:
            mask = torch.ones(x.shape[1], keys.shape[2], dtype=torch.bool, device=x.device)
            mask = mask.tril(seen)
        return self.out(self.joined(F.scaled_dot_product_attention(q, keys, values, mask)))

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(R, n, 3 F)`` to q, k, v, each a view ``(R, H, n, d)``."""
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    @staticmethod
    def joined(heads: Tensor) -> Tensor:
        """``(R, H, n, d)`` to ``(R, n, F)``."""
        return heads.transpose(1, 2).flatten(2)


class TransformerFeedForward(nn.Module):
    """W2 relu(W1 x + b1) + b2. Shape: ``(..., F) -> (..., F)``."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"the feed-forward width must be at least 1, got {hidden}")
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(linear(x, self.linear1.weight, self.linear1.bias))
        return linear(self.dropout(y), self.linear2.weight, self.linear2.bias)


class TransformerLayer(nn.Module):
    """Pre-norm layer. Shape: ``(R, n, F) -> (R, n, F)``.

    Args:
        dim: F.
        num_heads: H.
        ffn_dim: D.
        dropout: inside the feed-forward and before both residual sums.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, NORM_EPS)
        self.attention = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, NORM_EPS)
        self.ffn = TransformerFeedForward(dim, ffn_dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, span: Span = EVERYTHING) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), span))
        return x + self.dropout(self.ffn(self.norm2(x)))

    def step(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """The causal layer on positions that follow those in ``cache``."""
        x = x + self.attention.step(self.norm1(x), cache)
        return x + self.ffn(self.norm2(x))

    def add_to(self, x: Tensor, span: Span = EVERYTHING) -> None:
        """The same in place on a contiguous ``x``, outside of any graph and without dropout."""
        tokens = x.view(-1, x.shape[-1])
        attention, ffn = self.attention, self.ffn
        qkv = matmul_t(self.norm1(tokens), attention.qkv.weight, attention.qkv.bias)
        y = attention.joined(attend(*attention.heads(qkv.view(*x.shape[:2], -1)), span))
        tokens += matmul_t(y.view(tokens.shape), attention.out.weight, attention.out.bias)
        size = FFN_TOKENS.get(x.device.type, FFN_TOKENS["cuda"])
        for piece in tokens.split(size):
            y = matmul_t(self.norm2(piece), ffn.linear1.weight, ffn.linear1.bias).relu_()
            piece += matmul_t(y, ffn.linear2.weight, ffn.linear2.bias)


class TransformerStack(nn.Module):
    """Layers and a final layer norm. Shape: ``(R, n, F) -> (R, n, F)``.

    Positions are encoded by whoever calls (``sinusoids``). Arguments as of ``TransformerLayer``.
    """

    def __init__(
        self, num_layers: int, dim: int, num_heads: int, ffn_dim: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"a stack needs at least 1 layer, got {num_layers}")
        self.layers = nn.ModuleList(
            TransformerLayer(dim, num_heads, ffn_dim, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, NORM_EPS)

    def forward(self, x: Tensor, span: Span = EVERYTHING) -> Tensor:
        if may_infer(self, x):
            x = x.clone(memory_format=torch.contiguous_format)
            return self.infer(x, span)
        for layer in self.layers:
            x = layer(x, span)
        return self.norm(x)

    def step(self, x: Tensor, caches: list[KeyValueCache]) -> Tensor:
        """The causal stack on positions that follow those in ``caches`` (one per layer)."""
        for layer, cache in zip(self.layers, caches, strict=True):
            assert isinstance(layer, TransformerLayer)
            x = layer.step(x, cache)
        return self.norm(x)

    def infer(self, x: Tensor, span: Span = EVERYTHING) -> Tensor:
        """The same for a contiguous ``x`` that may be overwritten, if ``may_infer``."""
        for layer in self.layers:
            assert isinstance(layer, TransformerLayer)
            layer.add_to(x, span)
        return self.norm(x)


def row_groups(rows: int, n: int, device: str = "cpu") -> list[slice]:
    """Slices of ``rows`` sequences of ``n`` positions for ``TransformerStack.infer``."""
    size = max(1, GROUP_TOKENS.get(device, GROUP_TOKENS["cuda"]) // max(n, 1))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
