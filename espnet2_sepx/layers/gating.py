"""The gate of a dynamic slimmable network: which width each frame gets (DSN, section III-C).

A small copy of the masker (norm, bottleneck, one Transformer layer within chunks) sees the
encoder's output; statistics over a short window and a linear layer give one logit per level. The
widest logit wins. In training Gumbel noise makes that a sample, and gradients pass as if the
winner were the softmax (straight-through).

Legend: B batch, T frames, F channels, G channels of the gate, K levels, C chunk size, W window.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from espnet2_sepx.layers.dual_path import GlobalNorm, Segmentation
from espnet2_sepx.layers.kernels import linear
from espnet2_sepx.layers.norms import Padding
from espnet2_sepx.layers.transformer import TransformerStack, sinusoids

POOL_ALIGN = ("centre", "causal")
STD_FLOOR = 1e-8


class Gate(nn.Module):
    """Logits of the levels from the encoder's output. Shape: ``(B, T, F) -> (B, T, K)`` float32.

    Args:
        dim: F.
        num_levels: K.
        gate_dim: G.
        ffn_dim: hidden width of its Transformer layer.
        chunk_size: C frames, even.
        pool_frames: W, of the window of the statistics.
        pool_align: the window reaches from t - W/2 to t + W/2 - 1 ("centre"), or from t - W + 1 to
            t ("causal").
    """

    def __init__(
        self,
        dim: int,
        num_levels: int,
        gate_dim: int = 32,
        ffn_dim: int = 128,
        chunk_size: int = 50,
        pool_frames: int = 64,
        pool_align: str = "centre",
    ) -> None:
        super().__init__()
        if pool_frames < 1:
            raise ValueError(f"pool_frames must be at least 1, got {pool_frames}")
        if pool_align not in POOL_ALIGN:
            raise ValueError(f"pool_align must be one of {POOL_ALIGN}, got {pool_align!r}")
        after = 0 if pool_align == "causal" else max(pool_frames // 2 - 1, 0)
        self.window = (pool_frames - 1 - after, after)
        self.segmentation = Segmentation(chunk_size)
        self.input_norm = GlobalNorm(dim)
        self.bottleneck = nn.Linear(dim, gate_dim, bias=False)
        self.intra = TransformerStack(1, gate_dim, 1, ffn_dim)
        self.intra_norm = GlobalNorm(gate_dim)
        self.prelu = nn.PReLU()
        self.classifier = nn.Linear(2 * gate_dim, num_levels)

    def forward(self, x: Tensor, padding: Padding | None = None) -> Tensor:
        frames = x.shape[1]
        lengths = None if padding is None else padding.lengths
        x = linear(self.input_norm(x, lengths), self.bottleneck.weight)
        if padding is not None:
            x = x * padding.like(x)
        chunks = self.segmentation.split(x)  # (B, S, C, G)
        batch, _, size, dim = chunks.shape
        y = chunks.reshape(-1, size, dim)
        y = self.intra(y + sinusoids(0, size, dim, y)).view(batch, -1, dim)
        valid = None
        if padding is not None:
            valid = tuple(self.segmentation.num_chunks(n) * size for n in padding.lengths)
        y = self.intra_norm(y, valid).view_as(chunks) + chunks
        pooled = pool_statistics(
            self.segmentation.merge(self.prelu(y), frames), padding, self.window
        )
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.classifier.weight, self.classifier.bias
            return linear(pooled, weight.to(pooled.dtype), bias.to(pooled.dtype))


def pool_statistics(x: Tensor, padding: Padding | None, window: tuple[int, int]) -> Tensor:
    """Mean and standard deviation (biased) over frames t - before .. t + after: ``(B, T, 2 G)``.

    The window is cut at the borders of the valid frames. Sums are float64 (they are differences of
    running sums), the result is at least float32.

    Args:
        x: (B, T, G).
        padding: which frames are valid.
        window: (before, after).
    """
    frames, before, after = x.shape[1], *window
    wide = x.double()
    if padding is not None:
        wide = wide * padding.like(wide)
    # Row t of ``running`` is the sum over frames 0 .. t - 1.
    running = torch.cat((wide, wide.square()), -1).cumsum(1)
    running = nn.functional.pad(running, (0, 0, 1, 0))
    time = torch.arange(frames, device=x.device)
    first = (time - before).clamp_min(0)
    last = (time + after + 1).clamp_max(frames)
    ends = last.expand(x.shape[0], -1)
    if padding is not None:
        lengths = torch.tensor(padding.lengths, device=x.device)
        ends = torch.minimum(last, lengths[:, None])
    count = (ends - first).clamp_min(1)[..., None]
    sums = running.index_select(1, last) - running.index_select(1, first)
    mean, square = (sums / count).chunk(2, -1)
    std = (square - mean.square()).clamp_min(STD_FLOOR).sqrt()
    return torch.cat((mean, std), -1).to(torch.promote_types(x.dtype, torch.float32))


def choose(logits: Tensor, temperature: float, sample: bool) -> Tensor:
    """One-hot levels ``(B, T, K)`` of the largest logits, with the softmax's gradient.

    Args:
        logits: (B, T, K), at least float32.
        temperature: of the softmax that gives the gradient.
        sample: add Gumbel noise, i.e. draw from the softmax of the logits.
    """
    if sample:
        logits = logits - torch.empty_like(logits).exponential_().log()
    hard = torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    if not logits.requires_grad:
        return hard
    soft = (logits / temperature).softmax(-1)
    return hard + (soft - soft.detach())
