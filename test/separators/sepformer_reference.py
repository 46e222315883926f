"""RE-SepFormer and SepFormer in the most literal form, for one utterance; reads our parameters.

torch's own encoder layers, plain formulas for the norms, loops over chunks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet2_sepx.layers.dual_path import GlobalNorm
from espnet2_sepx.layers.transformer import TransformerStack
from espnet2_sepx.separators.re_sepformer import RESepFormerSeparator
from espnet2_sepx.separators.sepformer import SepFormerSeparator


def positions(n: int, dim: int) -> Tensor:
    table = torch.zeros(n, dim, dtype=torch.double)
    for c in range(dim):
        angle = torch.arange(n) / 10000 ** (c // 2 * 2 / dim)
        table[:, c] = angle.sin() if c % 2 == 0 else angle.cos()
    return table


def stack(model: TransformerStack, x: Tensor, allowed: Tensor | None) -> Tensor:
    """``(n, F)``; ``allowed (n, n)`` true where a query may look."""
    for layer in model.layers:
        y = F.layer_norm(x, x.shape[-1:], layer.norm1.weight, layer.norm1.bias, 1e-6)
        q, k, v = layer.attention.qkv(y).chunk(3, -1)
        heads = []
        width = x.shape[-1] // layer.attention.num_heads
        for h in range(layer.attention.num_heads):
            part = slice(h * width, (h + 1) * width)
            scores = q[:, part] @ k[:, part].t() / math.sqrt(width)
            if allowed is not None:
                scores = scores.masked_fill(~allowed, float("-inf"))
            heads.append(scores.softmax(-1) @ v[:, part])
        x = x + layer.attention.out(torch.cat(heads, -1))
        y = F.layer_norm(x, x.shape[-1:], layer.norm2.weight, layer.norm2.bias, 1e-6)
        x = x + layer.ffn.linear2(layer.ffn.linear1(y).relu())
    return F.layer_norm(x, x.shape[-1:], model.norm.weight, model.norm.bias, 1e-6)


def normalise(norm: torch.nn.Module, x: Tensor) -> Tensor:
    axes = tuple(range(x.dim())) if isinstance(norm, GlobalNorm) else (-1,)
    mean = x.mean(axes, keepdim=True)
    variance = (x - mean).square().mean(axes, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def re_sepformer(model: RESepFormerSeparator, x: Tensor) -> Tensor:
    """Masks ``(J, T, F)`` of ``x (T, F)``."""
    frames, dim = x.shape
    size = model.segmentation.chunk_size
    count = frames // size + 1
    x = torch.cat([x, x.new_zeros(count * size - frames, dim)])
    chunks = list(x.split(size))

    def reach(n: int, window: int | None) -> Tensor | None:
        if not model.causal:
            return None
        distance = torch.arange(n)[:, None] - torch.arange(n)
        return (distance >= 0) & (distance < (window or n))

    def block(module, x, window=None):
        y = stack(module.stack, x + positions(*x.shape), reach(x.shape[0], window))
        return normalise(module.norm, y) + x

    for index, intra in enumerate(model.intra):
        chunks = [block(intra, chunk) for chunk in chunks]
        if index < len(model.memory):
            means = torch.stack([chunk.mean(0) for chunk in chunks])
            context = block(model.memory[index], means, model.memory_context)
            if model.causal == "strict":
                context = torch.cat([torch.zeros_like(context[:1]), context[:-1]])
            chunks = [chunk + c for chunk, c in zip(chunks, context, strict=True)]
    y = torch.cat(chunks)[:frames]
    y = model.output(torch.where(y > 0, y, model.prelu.weight * y))
    return y.view(frames, dim, -1).permute(2, 0, 1).relu()


def sepformer(model: SepFormerSeparator, x: Tensor) -> Tensor:
    """Masks ``(J, T, F)`` of ``x (T, F)``, overlapping chunks."""
    frames, dim = x.shape
    x = model.bottleneck(normalise(model.input_norm, x))
    size = model.segmentation.chunk_size
    hop = size // 2
    gap = size - (hop + frames % size) % size
    padded = F.pad(x, (0, 0, hop, gap + hop))
    starts = range(0, padded.shape[0] - size + 1, hop)
    x = torch.stack([padded[start : start + size] for start in starts])  # (S, K, F)
    for block in model.blocks:
        y = torch.stack([stack(block.intra, c + positions(*c.shape), None) for c in x])
        y = normalise(block.intra_norm, y) + x
        across = y.transpose(0, 1)
        z = torch.stack([stack(block.inter, p + positions(*p.shape), None) for p in across])
        x = normalise(block.inter_norm, z.transpose(0, 1)) + y
    x = model.expand(torch.where(x > 0, x, model.prelu.weight * x))
    masks = []
    for j in range(model.num_outputs):
        total = torch.zeros_like(padded)
        for start, chunk in zip(starts, x, strict=True):
            total[start : start + size] += chunk[:, j * dim : (j + 1) * dim]
        y = total[hop : hop + frames]
        gated = model.output(y).tanh() * model.output_gate(y).sigmoid()
        masks.append(model.mask(gated).relu())
    return torch.stack(masks)
