"""Slimmable Transformer layers: every frame has its own width (DSN, section III-E).

A frame of utilisation U uses the first ceil(U H) heads and the first ceil(U D) hidden neurons of
every layer. A head is a query and a key only in the frames that use it, so it attends among those
(eqs. 13-15); a frame's feed-forward is a slice (eq. 16). The output biases always count.

Widths come in levels, narrow to wide; level k adds a *block* of heads and one of neurons to what
level k - 1 has. Two forms compute the same:

* ``forward`` computes everything and multiplies block k of each frame by the nested gate c_k, 0 or
  1, through which gradients reach whoever made it. Which frames are keys is not differentiated.
* ``slimmable_rows.run`` computes only what is used, without gradients.

Parameters have the names and layout of ``transformer``'s, so weights are interchangeable.

Legend: R rows, n sequence length, N tokens, F channels, H heads, d head width, D hidden neurons,
K levels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from espnet2_sepx.layers.cache import EvalCache
from espnet2_sepx.layers.kernels import (
    compute_dtype,
    linear,
    matmul_t,
    pieces,
    weight_gradient,
    without_autocast,
)
from espnet2_sepx.layers.transformer import NORM_EPS

KEPT_BLOCKS = 8
"""Different blocks of a layer whose weights are kept; widths may change with every input."""


def units(width: float, number: int) -> int:
    """ceil(width * number): how many of ``number`` heads or neurons a width uses."""
    return math.ceil(round(width * number, 6))  # 0.55 * 100 is 55.000000000000007


def layer_macs(dim: int, head_dim: int, heads: float, neurons: float, keys: float) -> float:
    """Multiply-accumulates of one frame in one layer: projections, attention, feed-forward.

    Args:
        dim: F.
        head_dim: d.
        heads: it uses.
        neurons: it uses.
        keys: that each of its heads attends to.
    """
    return heads * head_dim * (4 * dim + 2 * keys) + 2 * dim * neurons


@dataclass(frozen=True)
class Ladder:
    """Heads and neurons of each level, narrow to wide."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    @staticmethod
    def of_widths(widths: Sequence[float], num_heads: int, ffn_dim: int) -> Ladder:
        """Levels of ascending ``widths`` in (0, 1] of a layer with H heads and D neurons."""
        if not widths or not all(0 < width <= 1 for width in widths):
            raise ValueError(f"widths must lie in (0, 1], got {list(widths)}")
        if any(low >= high for low, high in itertools.pairwise(widths)):
            raise ValueError(f"widths must ascend, got {list(widths)}")
        return Ladder(
            tuple(units(width, num_heads) for width in widths),
            tuple(units(width, ffn_dim) for width in widths),
        )


@dataclass(frozen=True)
class Gates:
    """The widths along one axis in the computed-and-masked form.

    Attributes:
        ladder: of the K levels.
        nested: c_k (R, n, K), 1 where the frame's level is at least k, else 0; the first is 1
            everywhere. None: all frames have the one level there is.
        keys: (R, n) bool, positions that exist; None: all.
    """

    ladder: Ladder
    nested: Tensor | None = None
    keys: Tensor | None = None


class SlimmableAttention(EvalCache):
    """Self-attention whose heads skip frames. Shape: ``(R, n, F) -> (R, n, F)``.

    Args:
        dim: F.
        num_heads: heads that are stored, at most H.
        head_dim: d.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim)
        self.out = nn.Linear(num_heads * head_dim, dim)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        heads = gates.ladder.heads[-1]
        qkv_weight, qkv_bias, out_weight = self._select(0, heads)
        qkv = linear(x, qkv_weight, qkv_bias).unflatten(-1, (3, heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (R, H, n, d) each
        gate = _per_unit(gates.nested, gates.ladder.heads)  # (R, n, H)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=_key_mask(gate, gates.keys))
        y = y.transpose(1, 2)  # (R, n, H, d)
        if gate is not None:
            y = y * gate[..., None].to(y.dtype)
        return linear(y.flatten(2), out_weight, self.out.bias)

    def block(self, first: int, last: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Weights of heads first .. last - 1: of q, k and v, their bias, of the output.

        Outside of any graph.
        """
        if len(self._kept) >= KEPT_BLOCKS:
            self._kept = {}
        return self.cached(
            f"{first} {last} {dtype}",
            lambda: tuple(part.to(dtype) for part in self._select(first, last)),
        )

    def _select(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias, out = self.qkv.weight, self.qkv.bias, self.out.weight
        if (first, last) == (0, self.num_heads):
            return weight, bias, out
        chosen = slice(first * self.head_dim, last * self.head_dim)
        return (
            weight.unflatten(0, (3, -1))[:, chosen].flatten(0, 1),
            bias.unflatten(0, (3, -1))[:, chosen].flatten(),
            out[:, chosen].contiguous(),  # oneDNN is slow on strided weights
        )


class SlimmableFeedForward(EvalCache):
    """W2 relu(W1 x + b1) + b2, of which frames use the first neurons. ``(R, n, F) -> (R, n, F)``.

    Args:
        dim: F.
        hidden: neurons that are stored, at most D.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        dtype = compute_dtype(x)
        neurons = gates.ladder.neurons
        nested = None if gates.nested is None else gates.nested.flatten(0, 1).to(dtype)
        weights = [*self._select(0, neurons[-1]), self.linear2.bias]
        tokens = x.reshape(-1, x.shape[-1]).to(dtype)
        y = _GatedFeedForward.apply(tokens, nested, neurons, *(w.to(dtype) for w in weights))
        return y.view(x.shape)

    def block(self, first: int, last: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """W1, b1, W2 of neurons first .. last - 1, outside of any graph."""
        if len(self._kept) >= KEPT_BLOCKS:
            self._kept = {}
        return self.cached(
            f"{first} {last} {dtype}",
            lambda: tuple(part.to(dtype) for part in self._select(first, last)),
        )

    def _select(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        chosen = slice(first, last)
        w1, b1, w2 = self.linear1.weight, self.linear1.bias, self.linear2.weight
        return w1[chosen], b1[chosen], w2[:, chosen].contiguous()  # oneDNN is slow on strided


class SlimmableLayer(nn.Module):
    """Pre-norm layer. Shape: ``(R, n, F) -> (R, n, F)``.

    Args:
        dim: F.
        num_heads: H.
        ffn_dim: D.
        max_width: only this share of heads and neurons is stored.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, max_width: float = 1.0) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide the {dim} channels, got {num_heads}")
        self.norm1 = nn.LayerNorm(dim, NORM_EPS)
        self.attention = SlimmableAttention(dim, units(max_width, num_heads), dim // num_heads)
        self.norm2 = nn.LayerNorm(dim, NORM_EPS)
        self.ffn = SlimmableFeedForward(dim, units(max_width, ffn_dim))

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        x = x + self.attention(self.norm1(x), gates)
        return x + self.ffn(self.norm2(x), gates)


class SlimmableStack(nn.Module):
    """Layers and a final layer norm; arguments as of ``SlimmableLayer``."""

    def __init__(
        self, num_layers: int, dim: int, num_heads: int, ffn_dim: int, max_width: float = 1.0
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"a stack needs at least 1 layer, got {num_layers}")
        self.layers = nn.ModuleList(
            SlimmableLayer(dim, num_heads, ffn_dim, max_width) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, NORM_EPS)

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        for layer in self.layers:
            x = layer(x, gates)
        return self.norm(x)


def _per_unit(nested: Tensor | None, counts: Sequence[int]) -> Tensor | None:
    """Gates of levels ``(..., K)`` to gates of heads ``(..., H)``."""
    if nested is None:
        return None
    block = [level for level, size in enumerate(_sizes(counts)) for _ in range(size)]
    return nested[..., block]


def _sizes(counts: Sequence[int]) -> list[int]:
    """Units that each level adds."""
    return [high - low for low, high in itertools.pairwise([0, *counts])]


def _key_mask(gate: Tensor | None, keys: Tensor | None) -> Tensor | None:
    """(R, H or 1, 1, n) bool, true where a head may look; everywhere if it may look nowhere.

    A head without a frame in a row must not give NaN; its output is gated off anyway.
    """
    if gate is None and keys is None:
        return None
    mask = None if gate is None else gate.detach().transpose(1, 2) > 0.5
    if keys is not None:
        mask = keys[:, None] if mask is None else mask & keys[:, None]
    assert mask is not None
    return (mask | ~mask.any(-1, keepdim=True))[:, :, None]


class _GatedFeedForward(torch.autograd.Function):
    """Tokens ``(N, F)`` through a feed-forward whose blocks of neurons are multiplied by gates.

    Piece by piece, so that hidden activations stay in the cache; backward computes them anew.
    """

    @staticmethod
    @without_autocast
    def forward(ctx, x, nested, neurons, w1, b1, w2, b2):  # type: ignore[no-untyped-def]
        y = torch.empty_like(x)
        for piece in pieces(0, x.shape[0], x.device):
            hidden = matmul_t(x[piece], w1, b1).relu_()
            for gate, block in _blocks(nested, neurons, piece):
                hidden[:, block] *= gate
            y[piece] = matmul_t(hidden, w2, b2)
        ctx.save_for_backward(x, nested, w1, b1, w2)
        ctx.neurons = neurons
        return y

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, nested, w1, b1, w2 = ctx.saved_tensors
        d_x = torch.empty_like(x)
        d_nested = None if nested is None else torch.zeros_like(nested)
        d_w1, d_b1, d_w2 = (torch.zeros_like(w) for w in (w1, b1, w2))
        for piece in pieces(0, x.shape[0], x.device):
            hidden = matmul_t(x[piece], w1, b1).relu_()
            d_hidden = matmul_t(grad[piece], w2.t())
            alive = hidden > 0
            for level, (gate, block) in enumerate(_blocks(nested, ctx.neurons, piece), start=1):
                d_nested[piece, level] = (d_hidden[:, block] * hidden[:, block]).sum(1)
                d_hidden[:, block] *= gate
                hidden[:, block] *= gate
            d_w2 += weight_gradient(grad[piece], hidden)
            d_hidden *= alive
            d_w1 += weight_gradient(d_hidden, x[piece])
            d_b1 += d_hidden.sum(0)
            d_x[piece] = matmul_t(d_hidden, w1.t())
        return d_x, d_nested, None, d_w1, d_b1, d_w2, grad.sum(0)


def _blocks(nested, neurons, piece):  # type: ignore[no-untyped-def]
    """(gate (n, 1), slice of neurons) of every level but the first, whose gate is 1."""
    if nested is None:
        return []
    return [
        (nested[piece, level, None], slice(neurons[level - 1], neurons[level]))
        for level in range(1, len(neurons))
    ]
