"""Which token goes to which expert, how evenly, and how that is punished and reported.

Legend: B batch, T frames, K bands, E experts, J chosen experts, n tokens (time-frequency cells),
m = n J slots (one chosen expert of one token), R rows of a balance set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from espnet2_sepx.layers.norms import Padding


@dataclass
class Assignment:
    """Which experts the tokens chose, ready for dispatch.

    Slot t J + j is token t's j-th choice; a cell is (expert, token) as expert n + token. The cells
    are listed expert by expert.
    """

    cell: Tensor
    """Cell of each slot in the order of experts ``(m,)``."""
    order: Tensor
    """Slots in the order of experts ``(m,)``."""
    counts: list[int]
    """Slots per expert."""
    choices: int
    """J."""

    @staticmethod
    def from_experts(expert: Tensor, num_experts: int) -> Assignment:
        """From chosen experts ``(n, J)``, each token's choices distinct."""
        tokens, choices = expert.shape
        slots = expert.reshape(-1)
        order = torch.argsort(slots, stable=True)
        counts = torch.bincount(slots, minlength=num_experts).tolist()
        cell = slots.index_select(0, order) * tokens + order // choices
        return Assignment(cell, order, counts, choices)

    @staticmethod
    def top1(scores: Tensor, best: Tensor) -> Assignment:
        """Each token's best expert by ``scores (E, n)``; the lowest index among equals.

        The maxima, read row by row, already come sorted by expert: no sorting, no argmax.

        Args:
            scores: detached.
            best: their maximum ``(n,)``.
        """
        num_experts, tokens = scores.shape
        if scores.device.type == "cpu":  # NumPy compares and searches several times faster
            cell = torch.from_numpy((scores.numpy() == best.numpy()).ravel().nonzero()[0])
        else:
            cell = (scores == best).flatten().nonzero().flatten()
        if cell.shape[0] != tokens:  # equal scores
            return Assignment.from_experts(scores.max(0).indices[:, None], num_experts)
        ends = torch.arange(0, (num_experts + 1) * tokens, tokens, device=cell.device)
        bounds = torch.searchsorted(cell, ends).tolist()
        return Assignment(cell, cell % tokens, [b - a for a, b in pairwise(bounds)], 1)

    @cached_property
    def expert_of_slot(self) -> Tensor:
        """Expert of each slot in the order of experts ``(m,)``."""
        experts = torch.arange(len(self.counts), device=self.order.device)
        counts = torch.tensor(self.counts, device=self.order.device)
        return experts.repeat_interleave(counts, output_size=self.order.shape[0])

    def tokens(self) -> Tensor:
        """Token of each slot in the order of experts ``(m,)``."""
        return self.order if self.choices == 1 else self.order // self.choices

    def by_token(self) -> Tensor:
        """Cell of each slot in the order of tokens ``(m,)``."""
        return torch.empty_like(self.cell).scatter_(0, self.order, self.cell)

    def experts(self) -> Tensor:
        """Chosen experts ``(n, J)``."""
        num_tokens = self.order.shape[0] // self.choices
        return (self.by_token() // num_tokens).view(num_tokens, self.choices)

    def dispatch(self, step: int) -> Dispatch:
        """A table in which the run of each expert is padded to a multiple of ``step`` rows."""
        starts, runs = [0], []
        for count in self.counts:
            padded = count + (-count % step)
            runs.append(slice(starts[-1], starts[-1] + padded))
            starts.append(starts[-1] + padded)
        slots = torch.arange(self.order.shape[0], device=self.order.device)
        begins = [0, *accumulate(self.counts)]
        shifts = torch.tensor([start - begin for start, begin in zip(starts, begins, strict=True)])
        row = slots + shifts.to(slots.device).index_select(0, self.expert_of_slot)
        token = row.new_zeros(starts[-1]).scatter_(0, row, self.tokens())
        row_of_slot = torch.empty_like(row).scatter_(0, self.order, row)
        return Dispatch(runs, token, row_of_slot.view(-1, self.choices))


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
    num_experts, num_tokens = prob.shape
    shape = [1 if dim in dims else size for dim, size in enumerate(cells)]
    rows = math.prod(shape)
    token = assignment.tokens()
    row = torch.arange(rows, device=prob.device).view(shape).expand(cells).reshape(-1)
    where = assignment.expert_of_slot * rows + row.index_select(0, token)
    p = prob.view(num_experts, *cells)
    if padding is None:
        picked = torch.bincount(where, minlength=num_experts * rows)
        top1_prob = chosen[:, 0].mean()
        count = prob.new_full((1,), num_tokens / rows)
        used = count.new_full((), rows)
    else:
        valid = padding.like(p[0]).expand(cells)
        weight = valid.reshape(-1)
        p = p * valid
        picked = torch.bincount(where, weight[token], num_experts * rows)
        top1_prob = (chosen[:, 0] * weight).sum() / weight.sum()
        count = valid.sum(dims).view(-1)
        used = (count > 0).sum()
    picked = picked.to(prob.dtype).view(num_experts, rows)
    total = p.sum([dim + 1 for dim in dims]).view(num_experts, rows)
    losses = (picked * total).sum(0) / count.clamp_min(1.0).square()
    share = picked.sum(1)
    return RoutingStats(
        balance=losses.sum() * (num_experts / assignment.choices) / used,
        share=share / share.sum(),
        top1_prob=top1_prob,
        assignment=assignment,
        prob=chosen,
    )
