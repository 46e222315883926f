"""Slimmable layers read off eqs. 7-16 of the DSN paper, head by head and frame by frame.

Legend: R rows, n sequence length, F channels, d head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from espnet2_sepx.layers.slimmable import Ladder, SlimmableLayer, SlimmableStack


def layer(module: SlimmableLayer, x: Tensor, level: Tensor, ladder: Ladder) -> Tensor:
    """``x (R, n, F)``, ``level (R, n)`` from 0."""
    rows = zip(x, level.tolist(), strict=True)
    return torch.stack([_sequence(module, row, levels, ladder) for row, levels in rows])


def stack(module: SlimmableStack, x: Tensor, level: Tensor, ladder: Ladder) -> Tensor:
    for one in module.layers:
        x = layer(one, x, level, ladder)
    return module.norm(x)


def _sequence(module: SlimmableLayer, x: Tensor, levels: list[int], ladder: Ladder) -> Tensor:
    attention, ffn = module.attention, module.ffn
    d, stored = attention.head_dim, attention.num_heads
    weights = attention.qkv.weight.view(3, stored, d, -1)
    biases = attention.qkv.bias.view(3, stored, d)
    z = module.norm1(x)
    y = [attention.out.bias] * len(x)
    for h in range(ladder.heads[-1]):
        active = [m for m, k in enumerate(levels) if h < ladder.heads[k]]
        q, k, v = (
            {m: weights[part, h] @ z[m] + biases[part, h] for m in active} for part in range(3)
        )
        for m in active:
            score = torch.stack([q[m] @ k[j] for j in active]) / math.sqrt(d)
            value = sum(a * v[j] for a, j in zip(score.softmax(0), active, strict=True))
            y[m] = y[m] + attention.out.weight[:, h * d : (h + 1) * d] @ value
    x = x + torch.stack(y)
    z = module.norm2(x)
    out = []
    for m, k in enumerate(levels):
        n = ladder.neurons[k]
        hidden = torch.relu(ffn.linear1.weight[:n] @ z[m] + ffn.linear1.bias[:n])
        out.append(ffn.linear2.weight[:, :n] @ hidden + ffn.linear2.bias)
    return x + torch.stack(out)
