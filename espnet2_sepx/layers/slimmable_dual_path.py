"""Dual-path blocks of slimmable layers, by one plan of widths for all of them (DSN, section III-B).

Legend: B batch, T frames, S chunks, C chunk size, F channels, K levels, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espnet2_sepx.layers import slimmable_rows
from espnet2_sepx.layers.dual_path import GlobalNorm, Segmentation
from espnet2_sepx.layers.norms import Padding
from espnet2_sepx.layers.slimmable import Gates, Ladder, SlimmableStack, layer_macs
from espnet2_sepx.layers.transformer import sinusoids


@dataclass(frozen=True)
class ChunkMap:
    """Which frame each position of each chunk holds."""

    frame: Tensor
    """(B, S, C); positions of padding have the nearest frame of their item."""
    chunks: tuple[int, ...]
    """Valid chunks of each item."""

    @staticmethod
    def of(segmentation: Segmentation, x: Tensor, padding: Padding | None) -> ChunkMap:
        """For features ``x (B, T, F)``."""
        batch, frames, _ = x.shape
        lengths = (frames,) * batch if padding is None else padding.lengths
        hop = segmentation.chunk_size // 2
        start = torch.arange(segmentation.num_chunks(frames), device=x.device)[:, None] * hop
        frame = start - hop + torch.arange(segmentation.chunk_size, device=x.device)
        last = torch.tensor(lengths, device=x.device)[:, None, None] - 1
        return ChunkMap(
            torch.minimum(frame.clamp_min(0), last),
            tuple(segmentation.num_chunks(n) for n in lengths),
        )

    def spread(self, x: Tensor) -> Tensor:
        """``(B, T, ...)`` to (B, S, C, ...)."""
        item = torch.arange(x.shape[0], device=x.device)[:, None, None]
        return x[item, self.frame]

    def collect(self, x: Tensor, frames: int) -> Tensor:
        """Sum over the copies of each frame: ``(B, S, C)`` to (B, T)."""
        total = x.new_zeros(x.shape[0], frames)
        return total.scatter_add_(1, self.frame.flatten(1).to(x.device), x.flatten(1))

    @property
    def valid_rows(self) -> tuple[int, ...] | None:
        """Valid positions of each item, S C of them if None."""
        _, number, size = self.frame.shape
        return None if min(self.chunks) == number else tuple(n * size for n in self.chunks)


class MaskedPlan:
    """The widths of both paths, computed and masked: differentiable in the gates.

    Args:
        nested: gates c_k of the frames (B, T, K); None: one level.
        ladder: heads and neurons of the levels.
        chunk_map: of the input.
    """

    def __init__(self, nested: Tensor | None, ladder: Ladder, chunk_map: ChunkMap) -> None:
        _, number, size = chunk_map.frame.shape
        self.chunk_map = chunk_map
        within = across = keys = None
        if nested is not None:
            spread = chunk_map.spread(nested)  # (B, S, C, K)
            within = spread.flatten(0, 1)
            across = spread.transpose(1, 2).flatten(0, 1)
        if chunk_map.valid_rows is not None:
            device = chunk_map.frame.device
            valid = torch.tensor(chunk_map.chunks, device=device)[:, None]
            keys = torch.arange(number, device=device) < valid
            keys = keys.repeat_interleave(size, 0)
        self.intra = Gates(ladder, within)
        self.inter = Gates(ladder, across, keys)

    def apply(self, stack: SlimmableStack, x: Tensor, across: bool) -> Tensor:
        """The stack on ``x (B, S, C, F)``, within or across chunks."""
        if across:
            x = x.transpose(1, 2)
        rows = x.flatten(0, 1)
        rows = rows + sinusoids(0, rows.shape[1], rows.shape[2], rows)
        rows = stack(rows, self.inter if across else self.intra).view(x.shape)
        return rows.transpose(1, 2) if across else rows

    def macs(self, dim: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """What one layer within and one across chunks costs at each position: ``(B, S, C)`` each.

        Products only, float64, on the CPU.
        """
        number, size = self.chunk_map.frame.shape[1:]
        shape = self.chunk_map.frame.shape
        heads, neurons = self.intra.ladder.heads[-1], self.intra.ladder.neurons[-1]
        within, across = (
            torch.full(shape, float(layer_macs(dim, head_dim, heads, neurons, n)))
            for n in (size, number)
        )
        return within.double(), across.double()


class SparsePlan:
    """The widths of both paths, computing only what is used; without gradients.

    Args:
        level: of the frames (B, T) int.
        ladder: heads and neurons of the levels.
        chunk_map: of the input.
    """

    def __init__(self, level: Tensor, ladder: Ladder, chunk_map: ChunkMap) -> None:
        self.chunk_map = chunk_map
        spread = chunk_map.spread(level)
        device = level.device
        self.intra, self.inter = (
            slimmable_rows.plan_pieces(spread, chunk_map.chunks, ladder, across, device)
            for across in (False, True)
        )
        self._table: Tensor | None = None
        self._out: Tensor | None = None  # taken once: fresh pages are not free

    def apply(self, stack: SlimmableStack, x: Tensor, across: bool) -> Tensor:
        """The stack on ``x (B, S, C, F)``, within or across chunks; zero in invalid chunks.

        The next call overwrites the result.
        """
        if self._table is None or self._out is None:
            self._table = sinusoids(0, max(x.shape[1:3]), x.shape[3], x)
            self._out = torch.zeros_like(x)
        pieces = self.inter if across else self.intra
        slimmable_rows.run(stack, x, self._table, pieces, across, self._out)
        return self._out

    def macs(self, dim: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """See ``MaskedPlan.macs``; zero in invalid chunks."""
        shape = self.chunk_map.frame.shape
        return (
            slimmable_rows.macs(self.intra, shape, dim, head_dim, False),
            slimmable_rows.macs(self.inter, shape, dim, head_dim, True),
        )


Plan = MaskedPlan | SparsePlan


class SlimmableDualPathBlock(nn.Module):
    """Layers within chunks, then across them, each with a norm and a skip around.

    Shape: ``(B, S, C, F) -> (B, S, C, F)``, contiguous; by a ``SparsePlan`` in place.

    Args:
        dim: F.
        intra_layers, inter_layers: number of layers of each path.
        num_heads, ffn_dim, max_width: see ``SlimmableLayer``.
    """

    def __init__(
        self,
        dim: int,
        intra_layers: int,
        inter_layers: int,
        num_heads: int,
        ffn_dim: int,
        max_width: float = 1.0,
    ) -> None:
        super().__init__()
        self.intra = SlimmableStack(intra_layers, dim, num_heads, ffn_dim, max_width)
        self.intra_norm = GlobalNorm(dim)
        self.inter = SlimmableStack(inter_layers, dim, num_heads, ffn_dim, max_width)
        self.inter_norm = GlobalNorm(dim)

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        valid = plan.chunk_map.valid_rows
        for across, stack, norm in (
            (False, self.intra, self.intra_norm),
            (True, self.inter, self.inter_norm),
        ):
            y = plan.apply(stack, x, across).flatten(1, 2)
            if isinstance(plan, SparsePlan):
                norm.add_to(x.flatten(1, 2), y, valid)
            else:
                x = norm(y, valid).view(x.shape) + x
        return x
