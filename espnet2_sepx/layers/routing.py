"""Which token goes to which expert, how evenly, and how that is punished and reported.

Legend: B batch, T frames, K bands, E experts, J chosen experts, n tokens (time-frequency cells),
slot: one chosen expert of one token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from espnet2_sepx.layers.norms import Padding


@dataclass
class Assignment:
    """Which experts the tokens chose. Slot t J + j is token t's j-th choice."""

    expert: Tensor
    """Chosen experts ``(n, J)`` int16, best first."""
    picked: Tensor
    """1 where a token chose an expert, else 0: ``(E, n)``."""
    counts: list[int]
    """Tokens per expert."""

    @staticmethod
    def of_best(relative: Tensor) -> Assignment:
        """Each token's best expert; the lowest index among equals.

        Args:
            relative: ``(E, n)``, exactly 1 for the best, below 1 for the others.
        """
        num_experts, tokens = relative.shape
        picked = relative.floor()
        counts = _counts(picked)
        if sum(counts) != tokens:  # equal scores
            return Assignment.of_experts(relative.max(0).indices[:, None], num_experts, picked)
        index = torch.arange(num_experts, device=picked.device, dtype=picked.dtype)
        return Assignment((index @ picked).to(torch.int16)[:, None], picked, counts)

    @staticmethod
    def of_experts(expert: Tensor, num_experts: int, like: Tensor) -> Assignment:
        """From chosen experts ``(n, J)``, each token's choices distinct; dtype as ``like``."""
        picked = like.new_zeros(num_experts, expert.shape[0])
        picked.scatter_(0, expert.long().t(), 1.0)
        return Assignment(expert.to(torch.int16), picked, _counts(picked))

    def dispatch(self, step: int) -> Dispatch:
        """A table in which the run of each expert is padded to a multiple of ``step`` rows."""
        device, (tokens, choices) = self.expert.device, self.expert.shape
        slots = self.expert.reshape(-1)
        if device.type == "cpu":  # NumPy sorts small integers many times faster
            order = torch.from_numpy(slots.numpy().argsort(kind="stable"))
        else:
            order = torch.argsort(slots, stable=True)
        runs, rows, start = [], [], 0
        for count in self.counts:
            runs.append(slice(start, start + count + (-count % step)))
            rows.append(torch.arange(start, start + count, device=device))
            start = runs[-1].stop
        row = torch.cat(rows)
        token = row.new_zeros(start)
        token.scatter_(0, row, order if choices == 1 else order // choices)
        row_of_slot = torch.empty_like(row).scatter_(0, order, row)
        return Dispatch(runs, token, row_of_slot.view(tokens, choices))


def _counts(picked: Tensor) -> list[int]:
    """Row sums of ones and zeros; float32 counts exactly up to its 24 bits."""
    dtype = picked.dtype if picked.shape[1] < 2**24 else torch.float64
    return [int(count) for count in picked.sum(1, dtype=dtype).tolist()]


@dataclass
class Dispatch:
    """A table of rows, one per slot and some of padding, sorted by expert."""

    runs: list[slice]
    """Rows of each expert."""
    token: Tensor
    """Token of each row; 0 in padding."""
    row: Tensor
    """Row of each token's choices, ``(n, J)``."""

    def spread(self, gate: Tensor) -> Tensor:
        """``(n, J)`` to (rows, 1), zero in padding."""
        rows = gate.new_zeros(self.token.shape[0])
        return rows.scatter_(0, self.row.view(-1), gate.reshape(-1))[:, None]


@dataclass
class RoutingStats:
    """What one mixture layer reports of one forward pass."""

    balance: Tensor
    """Balance loss, 0-dim, in the graph."""
    share: Tensor
    """Share of the chosen slots per expert, ``(E,)``, detached."""
    top1_prob: Tensor
    """Mean probability of each valid token's best expert, 0-dim, detached."""
    assignment: Assignment
    prob: Tensor
    """Router probabilities of the chosen experts ``(n, J)``, detached."""


@dataclass
class RoutingRecord:
    """Routing decisions of one mixture layer, for reports (Fig. 2)."""

    axis: str
    """"time" (T-module) or "frequency" (F-module)."""
    block: int
    """1-based."""
    ffn: int
    """1 or 2: which of the module's two feed-forwards."""
    expert: Tensor
    """int16 ``(B, T, K, J)``, best first."""
    prob: Tensor
    """float32 ``(B, T, K, J)``."""
    valid: Tensor
    """bool ``(B, T)``."""


def routing_stats(
    prob: Tensor,
    chosen: Tensor,
    assignment: Assignment,
    cells: torch.Size,
    dims: tuple[int, ...],
    padding: Padding | None,
) -> RoutingStats:
    """Balance loss (eq. 4) and load.

    Over the n valid tokens of a row: l = sum_i f_i P_i with f_i = E/(J n) #{t: i chosen for t} and
    P_i the mean of p_i; the loss is the mean of l over the rows that have a valid token.

    Args:
        prob: router probabilities ``(E, n)``, in the graph.
        chosen: those of the chosen experts ``(n, J)``, detached.
        assignment: who chose what.
        cells: (B, T, K).
        dims: axes of ``cells`` that a row spans.
        padding: which frames are valid.
    """
    num_experts = prob.shape[0]
    p, picked = prob.view(num_experts, *cells), assignment.picked.view(num_experts, *cells)
    if padding is None:
        count = prob.new_full((), math.prod(cells[dim] for dim in dims))
        used = math.prod(cells) / count
        top1_prob = chosen[:, 0].mean()
    else:
        valid = padding.like(p[0]).expand(cells)
        p, picked = p * valid, picked * valid
        count = valid.sum(dims)
        used = (count > 0).sum()
        top1_prob = (chosen[:, 0] * valid.reshape(-1)).sum() / valid.sum()
    over = [dim + 1 for dim in dims]
    picked = picked.sum(over)  # (E, rows ...)
    losses = (picked * p.sum(over)).sum(0) / count.clamp_min(1.0).square()
    share = picked.view(num_experts, -1).sum(1)
    return RoutingStats(
        balance=losses.sum() * (num_experts / chosen.shape[1]) / used,
        share=share / share.sum(),
        top1_prob=top1_prob,
        assignment=assignment,
        prob=chosen,
    )
