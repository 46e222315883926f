"""Which token goes to which expert, how evenly, and how that is punished and reported.

Legend: B batch, T frames, K bands, E experts, J chosen experts, n tokens (time-frequency cells),
R balance rows, slot: one chosen expert of one token.
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
    def of(expert: Tensor, prob: Tensor) -> Assignment:
        """From chosen experts ``(n, J)``, each token's choices distinct, and ``prob (E, n)``."""
        picked = torch.zeros_like(prob).scatter_(0, expert.t(), 1.0)
        # float32 counts exactly up to its 24 bits
        dtype = picked.dtype if picked.shape[1] < 2**24 else torch.float64
        counts = [int(count) for count in picked.sum(1, dtype=dtype).tolist()]
        return Assignment(expert.to(torch.int16), picked, counts)

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
class BalanceRows:
    """Sets of tokens whose load is balanced. Token i is in row i // span * stride + i % stride."""

    cells: torch.Size
    """(B, T, K)."""
    dims: tuple[int, ...]
    """Adjacent axes of ``cells`` that one row spans."""
    padding: Padding | None

    @property
    def span(self) -> int:
        return math.prod(self.cells[self.dims[0] :])

    @property
    def stride(self) -> int:
        return math.prod(self.cells[self.dims[-1] + 1 :])

    @property
    def number(self) -> int:
        return math.prod(self.cells) // self.span * self.stride

    def valid(self) -> Tensor | None:
        """Which tokens are valid, ``(n,)`` bool; None if all are."""
        if self.padding is None:
            return None
        return self.padding.valid[:, :, None].expand(self.cells).reshape(-1)

    def sums(self, x: Tensor) -> Tensor:
        """Over the valid tokens of each row: ``(E, n) -> (E, R)``."""
        valid = self.valid()
        x = (x if valid is None else x * valid).view(-1, *self.cells)
        return x.sum([dim + 1 for dim in self.dims]).reshape(x.shape[0], -1)


@dataclass
class RoutingStats:
    """What one mixture layer reports of one forward pass."""

    balance: Tensor
    """Balance loss, 0-dim, in the graph."""
    share: Tensor
    """Share of the chosen slots per expert, ``(E,)``, detached."""
    top1_prob: Tensor
    """Mean probability of each valid token's best expert, 0-dim, detached."""
    expert: Tensor
    """Chosen experts ``(n, J)`` int16, best first."""
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
    prob_sum: Tensor, choice_sum: Tensor, rows: BalanceRows, expert: Tensor, chosen: Tensor
) -> RoutingStats:
    """Balance loss (eq. 4) and load.

    Over the n valid tokens of a row: l = sum_i f_i P_i with f_i = E/(J n) #{t: i chosen for t} and
    P_i the mean of p_i; the loss is the mean of l over the rows that have a valid token.

    Args:
        prob_sum: router probabilities, summed over the valid tokens of each row: ``(E, R)``, in
            the graph.
        choice_sum: how many of them chose each expert, ``(E, R)``.
        rows: the rows.
        expert: chosen experts ``(n, J)``.
        chosen: their probabilities ``(n, J)``, detached.
    """
    (num_experts, _), (_, top_k) = prob_sum.shape, chosen.shape
    slots, share = choice_sum.sum(0), choice_sum.sum(1)
    losses = (choice_sum * prob_sum).sum(0) / slots.clamp_min(1.0).square()
    valid, best = rows.valid(), chosen[:, 0]
    return RoutingStats(
        balance=losses.sum() * (num_experts * top_k) / (slots > 0).sum(),
        share=share / share.sum(),
        top1_prob=best.mean() if valid is None else (best * valid).sum() / valid.sum(),
        expert=expert,
        prob=chosen,
    )
