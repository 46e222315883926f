"""The parts of RE-SepFormer: a Transformer stack with norm and skip, and its streaming state.

Legend: R rows, n positions, F channels, H heads, d head width, W window.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from espnet2_sepx.layers.dual_path import GlobalNorm
from espnet2_sepx.layers.kernels import may_infer
from espnet2_sepx.layers.transformer import (
    EVERYTHING,
    KeyValueCache,
    Span,
    TransformerStack,
    row_groups,
    sinusoids,
)

NORMS = ("gln", "cln")
NORM_EPS = torch.finfo(torch.float32).eps


class TransformerBlock(nn.Module):
    """norm(stack(x + positions)) + x. Shape: ``(R, n, F) -> (R, n, F)``.

    Args:
        norm: "gln", over all positions of a row, or "cln", position by position.
        (others as of TransformerStack)
    """

    def __init__(
        self,
        num_layers: int,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        norm: str = "gln",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stack = TransformerStack(num_layers, dim, num_heads, ffn_dim, dropout)
        self.norm: nn.Module = (
            GlobalNorm(dim, NORM_EPS) if norm == "gln" else nn.LayerNorm(dim, NORM_EPS)
        )

    def forward(self, x: Tensor, span: Span = EVERYTHING) -> Tensor:
        positions = sinusoids(0, x.shape[1], x.shape[2], x)
        return self._normalise(self.stack(x + positions, span), span) + x

    def infer(self, x: Tensor, span: Span = EVERYTHING) -> None:
        """The same in place on a contiguous ``x``, a group of rows at a time, if ``may_infer``.

        Rows must be whole (``span.lengths`` None).
        """
        positions = sinusoids(0, x.shape[1], x.shape[2], x)
        for group in row_groups(x.shape[0], x.shape[1], x.device.type):
            rows = x[group]
            rows += self._normalise(self.stack.infer(rows + positions, span), span)

    def step(self, x: Tensor, state: BlockState) -> Tensor:
        """Causal continuation: ``x (R, n, F)`` follows what ``state`` has seen. Needs "cln"."""
        positions = sinusoids(state.position, x.shape[1], x.shape[2], x)
        state.position += x.shape[1]
        return self.norm(self.stack.step(x + positions, state.caches)) + x

    def start(self, window: int | None = None) -> BlockState:
        return BlockState([KeyValueCache(window) for _ in self.stack.layers])

    def _normalise(self, x: Tensor, span: Span) -> Tensor:
        return self.norm(x, span.lengths) if isinstance(self.norm, GlobalNorm) else self.norm(x)


@dataclass
class BlockState:
    """What a causal block remembers of a row: keys and values per layer, and where it is."""

    caches: list[KeyValueCache] = field(default_factory=list)
    position: int = 0

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches)


def apply_rows(block: TransformerBlock, x: Tensor, span: Span) -> Tensor:
    """``block`` on every row of ``x``, which may be overwritten: in place if that is allowed."""
    if not may_infer(block, x):
        return block(x, span)
    block.infer(x, span)
    return x
