"""Sparse mixture-of-experts feed-forward (TF-MoE, section 2.2, eqs. 2-4).

Legend: B batch, T frames, K bands, N channels, H hidden width, E experts, J chosen experts, n tokens
(time-frequency cells), m = n J slots (one chosen expert of one token), R rows of a balance set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_sepx.layers.feed_forward import (
    Stacked,
    expert_forward,
    expert_pieces,
    run_experts,
)
from espnet2_sepx.layers.kernels import ROW_STEP, compute_dtype, pieces, rounded
from espnet2_sepx.layers.norms import Padding

GATES = ("prob", "straight_through", "normalised")
BALANCE_SCOPES = ("sequence", "batch")


@dataclass
class Assignment:
    """Which experts the tokens chose, ready for dispatch.

    Slot t J + j is token t's j-th choice; a cell is (expert, token) as expert n + token.
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
    def top1(prob: Tensor) -> Assignment:
        """Each token's best expert by ``prob (E, n)``; the lowest index among equals.

        The maxima, read row by row, already come sorted by expert: no sorting, no argmax.
        """
        num_experts, tokens = prob.shape
        cell = (prob == prob.amax(0)).flatten().nonzero().flatten()
        if cell.shape[0] != tokens:  # equal probabilities
            return Assignment.from_experts(prob.max(0).indices[:, None], num_experts)
        ends = torch.arange(num_experts + 1, device=prob.device) * tokens
        bounds = torch.searchsorted(cell, ends).tolist()
        return Assignment(cell, cell % tokens, [b - a for a, b in pairwise(bounds)], 1)

    @cached_property
    def inverse(self) -> Tensor:
        """Position of each slot in the order of experts ``(m,)``."""
        index = torch.arange(self.order.shape[0], device=self.order.device)
        return torch.empty_like(self.order).scatter_(0, self.order, index)

    def tokens(self) -> Tensor:
        """Token of each slot in the order of experts ``(m,)``."""
        return self.order if self.choices == 1 else self.order // self.choices

    def expert_of_slots(self) -> Tensor:
        """Expert of each slot in the order of experts ``(m,)``."""
        experts = torch.arange(len(self.counts), device=self.order.device)
        counts = torch.tensor(self.counts, device=self.order.device)
        return experts.repeat_interleave(counts, output_size=self.order.shape[0])

    def by_token(self) -> Tensor:
        """Cell of each slot in the order of tokens ``(m,)``."""
        return self.cell.index_select(0, self.inverse)

    def experts(self) -> Tensor:
        """Chosen experts ``(n, J)``."""
        num_tokens = self.order.shape[0] // self.choices
        return (self.by_token() // num_tokens).view(num_tokens, self.choices)


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
    """int16 ``(B, T, K, J)``."""
    prob: Tensor
    """float32 ``(B, T, K, J)``."""
    valid: Tensor
    """bool ``(B, T)``."""


class MoEFeedForward(nn.Module):
    """Each token passes through its J best of E feed-forwards; ``num_experts=1`` is the dense layer.

    J = 1 weights the expert by ``gate``:

    * ``prob``: its probability p; the router learns from the task through an exact gradient.
    * ``straight_through``: p / stopgrad(p), which is 1 forward (the paper's literal normalised weight)
      and has the gradient of log p.
    * ``normalised``: exactly 1; the router then learns from the balance loss alone.

    J > 1 weights each chosen expert by p over the sum of the chosen p (eq. 3), for every gate.

    Experts are stored stacked: the parameters always get a gradient, even if no token chose an expert.

    Shape: ``(B, T, K, N) -> (B, T, K, N)``.

    Args:
        dim: N.
        axis: "time" or "frequency", decides what a row of the "sequence" balance is.
        num_experts: E.
        top_k: J, in 1..E.
        expansion: H / N.
        gate: see above.
        balance_scope: "sequence" balances each row (the frames of a band, the bands of a frame),
            "batch" all tokens together.
    """

    def __init__(
        self,
        dim: int,
        *,
        axis: str,
        num_experts: int,
        top_k: int = 1,
        expansion: int = 4,
        gate: str = "prob",
        balance_scope: str = "sequence",
    ) -> None:
        super().__init__()
        if num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {num_experts}")
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must lie in 1..num_experts={num_experts}, got {top_k}")
        if gate not in GATES:
            raise ValueError(f"gate must be one of {GATES}, got {gate!r}")
        if balance_scope not in BALANCE_SCOPES:
            raise ValueError(
                f"balance_scope must be one of {BALANCE_SCOPES}, got {balance_scope!r}"
            )
        hidden = expansion * dim
        self.axis = axis
        self.top_k = top_k
        self.gate = gate
        self.balance_scope = balance_scope
        self.router = nn.Parameter(torch.empty(num_experts, dim))
        self.weight1 = nn.Parameter(torch.empty(num_experts, hidden, dim))
        self.bias1 = nn.Parameter(torch.empty(num_experts, hidden))
        self.weight2 = nn.Parameter(torch.empty(num_experts, dim, hidden))
        self.bias2 = nn.Parameter(torch.empty(num_experts, dim))
        for tensor, fan_in in (
            (self.router, dim),
            (self.weight1, dim),
            (self.bias1, dim),
            (self.weight2, hidden),
            (self.bias2, hidden),
        ):
            bound = 1.0 / math.sqrt(fan_in)  # each expert as nn.Linear initialises it
            nn.init.uniform_(tensor, -bound, bound)

    def forward(self, x: Tensor, padding: Padding | None = None) -> tuple[Tensor, RoutingStats]:
        tokens = x.reshape(-1, x.shape[-1])
        assignment, gate, stats = self._route(tokens, x.shape[:3], padding)
        dtype = compute_dtype(x)
        y = sorted_experts(tokens.to(dtype), assignment, gate.to(dtype), self._weights(dtype))
        return y.view(x.shape), stats

    def add_to(
        self, x: Tensor, norm: nn.LayerNorm, factor: float, padding: Padding | None
    ) -> RoutingStats:
        """x += factor * experts(norm(x)) in place, outside of any graph."""
        target = x.view(-1, x.shape[-1])
        tokens = norm(target)
        assignment, gate, stats = self._route(tokens, x.shape[:3], padding)
        gate = gate.to(x.dtype).view(-1, 1).index_select(0, assignment.order) * factor
        token, weights = assignment.tokens(), self._weights(x.dtype)
        y = x.new_empty(token.shape[0], x.shape[-1])
        token = F.pad(token, (0, ROW_STEP))  # rounded pieces read on behind their end
        for expert, piece in expert_pieces(assignment.counts, x.device):
            count = piece.stop - piece.start
            rows = token[piece.start : piece.start + rounded(count, x)]
            output = expert_forward(tokens.index_select(0, rows), weights, expert)
            torch.mul(output[:count], gate[piece], out=y[piece])
        by_token = assignment.inverse.view(-1, self.top_k)
        for piece in pieces(0, target.shape[0], x.device):
            for slot in by_token[piece].unbind(1):
                target[piece] += y.index_select(0, slot)
        return stats

    def _route(
        self, tokens: Tensor, cells: torch.Size, padding: Padding | None
    ) -> tuple[Assignment, Tensor, RoutingStats]:
        """Who computes what, with which weight ``(n, J)``, and the figures of it."""
        prob = self._probabilities(tokens)
        with torch.no_grad():
            if self.top_k == 1:
                assignment = Assignment.top1(prob)
            else:
                best = prob.topk(self.top_k, 0).indices
                assignment = Assignment.from_experts(best.t(), prob.shape[0])
        chosen = prob.flatten().index_select(0, assignment.by_token()).view(-1, self.top_k)
        stats = self._stats(prob, chosen.detach(), assignment, cells, padding)
        return assignment, self._gate_weight(chosen), stats

    def _weights(self, dtype: torch.dtype) -> Stacked:
        w1, b1, w2, b2 = (self.weight1, self.bias1, self.weight2, self.bias2)
        return w1.to(dtype), b1.to(dtype), w2.to(dtype), b2.to(dtype)

    def _probabilities(self, tokens: Tensor) -> Tensor:
        """softmax(W_g x), ``(E, n)``, in at least float32.

        Experts come first: reductions over axis 0 run several times faster than over a short last one.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            dtype = torch.promote_types(tokens.dtype, torch.float32)
            return torch.softmax(self.router.to(dtype) @ tokens.to(dtype).t(), 0)

    def _gate_weight(self, chosen: Tensor) -> Tensor:
        if self.top_k > 1:
            return chosen / chosen.sum(1, keepdim=True)
        if self.gate == "prob":
            return chosen
        if self.gate == "straight_through":
            return chosen / chosen.detach()
        return torch.ones_like(chosen)

    def _stats(
        self,
        prob: Tensor,
        chosen: Tensor,
        assignment: Assignment,
        cells: torch.Size,
        padding: Padding | None,
    ) -> RoutingStats:
        """Balance loss and load: l = sum_i f_i P_i with f_i = E/(J n) #chosen, P_i = mean p_i.

        One such l per row of the balance set, averaged over rows with a valid token.
        """
        num_experts, num_tokens = prob.shape
        dims = self._row_dims()
        shape = [1 if dim in dims else size for dim, size in enumerate(cells)]
        rows = math.prod(shape)
        token = assignment.tokens()
        row = torch.arange(rows, device=prob.device).view(shape).expand(cells).flatten()
        expert_row = assignment.expert_of_slots() * rows + row.index_select(0, token)
        p = prob.view(num_experts, *cells)
        if padding is None:
            picked = torch.bincount(expert_row, minlength=num_experts * rows).to(prob.dtype)
            count = prob.new_full((1,), num_tokens / rows)
            top = chosen[:, 0].mean()
        else:
            valid = padding.like(p[0]).expand(cells)
            p = p * valid
            weight = valid.flatten()
            picked = torch.bincount(expert_row, weight[token], num_experts * rows).to(prob.dtype)
            count = valid.sum(dims).flatten()
            top = (chosen[:, 0] * weight).sum() / weight.sum()
        picked = picked.view(num_experts, rows)
        total = p.sum([dim + 1 for dim in dims]).view(num_experts, rows)
        losses = (picked * total).sum(0) / count.clamp_min(1.0).square()
        used = (count > 0).sum() if padding is not None else rows
        return RoutingStats(
            balance=losses.sum() * (num_experts / self.top_k) / used,
            share=picked.sum(1) / picked.sum(),
            top1_prob=top,
            assignment=assignment,
            prob=chosen,
        )

    def _row_dims(self) -> tuple[int, ...]:
        """Axes of (B, T, K) that one balance set spans."""
        if self.balance_scope == "batch":
            return (0, 1, 2)
        return (1,) if self.axis == "time" else (2,)


def sorted_experts(x: Tensor, assignment: Assignment, gate: Tensor, weights: Stacked) -> Tensor:
    """Evaluate only the chosen experts, each on its tokens at once.

    Args:
        x: tokens (n, N).
        assignment: chosen experts.
        gate: their weights (n, J).
        weights: stacked W1 (E, H, N), b1 (E, H), W2 (E, N, H), b2 (E, N).

    Returns:
        sum_j gate_j expert_j(x), ``(n, N)``.
    """
    order, inverse = assignment.order, assignment.inverse
    slots = x if assignment.choices == 1 else x.repeat_interleave(assignment.choices, 0)
    y = _Permute.apply(slots, order, inverse)
    y = _Permute.apply(run_experts(y, assignment.counts, weights), inverse, order)
    if assignment.choices == 1:
        return y * gate
    return (y.view(*gate.shape, -1) * gate[:, :, None]).sum(1)


def naive_experts(x: Tensor, assignment: Assignment, gate: Tensor, weights: Stacked) -> Tensor:
    """The same expert by expert with masks and plain operations: the reference in tests."""
    w1, b1, w2, b2 = weights
    chosen = assignment.experts()
    out = torch.zeros_like(x)
    for expert in range(w1.shape[0]):
        token, choice = torch.nonzero(chosen == expert, as_tuple=True)
        y = F.linear(F.silu(F.linear(x[token], w1[expert], b1[expert])), w2[expert], b2[expert])
        out = out.index_add(0, token, y * gate[token, choice, None])
    return out


class _Permute(torch.autograd.Function):
    """Rows in another order; the gradient goes back by the inverse order, not by scattered sums."""

    @staticmethod
    def forward(ctx, x, order, inverse):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad.index_select(0, ctx.saved_tensors[0]), None, None
