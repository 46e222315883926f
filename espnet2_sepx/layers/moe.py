"""Sparse mixture-of-experts feed-forward (TF-MoE, section 2.2, eqs. 2-4).

Legend: B batch, T frames, K bands, N channels, H hidden width, E experts, J chosen experts, n
tokens (time-frequency cells), m = n J slots (one chosen expert of one token).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_sepx.layers.feed_forward import Weights, expert_backward, expert_forward
from espnet2_sepx.layers.kernels import (
    LOG2_E,
    ROW_STEP,
    compute_dtype,
    matmul_t,
    pieces,
    rounded,
    without_autocast,
)
from espnet2_sepx.layers.norms import Padding
from espnet2_sepx.layers.routing import Assignment, RoutingStats, routing_stats

GATES = ("prob", "straight_through", "normalised")
BALANCE_SCOPES = ("sequence", "batch")


class MoEFeedForward(nn.Module):
    """Each token passes through its J best of E feed-forwards; ``num_experts=1`` is dense.

    J = 1 weights the expert by ``gate``:

    * ``prob``: its probability p; the router learns from the task through an exact gradient.
    * ``straight_through``: p / stopgrad(p), which is 1 forward (the paper's literal normalised
      weight) and has the gradient of log p.
    * ``normalised``: exactly 1; the router then learns from the balance loss alone.

    J > 1 weights each chosen expert by p over the sum of the chosen p (eq. 3), for every gate.

    Experts are stored stacked: every parameter gets a gradient, also if an expert has no token.

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
        route = self._route_top1 if self.top_k == 1 else self._route
        assignment, gate, stats = route(tokens, x.shape[:3], padding)
        gate = gate.to(x.dtype)
        y = _run_experts(tokens, assignment, self._weights(x.dtype))
        position = assignment.inverse.view(-1, self.top_k)
        for piece in pieces(0, target.shape[0], x.device):
            for slot, weight in zip(
                position[piece].unbind(1), gate[piece].split(1, 1), strict=True
            ):
                target[piece].addcmul_(y.index_select(0, slot), weight, value=factor)
        return stats

    def _route(
        self, tokens: Tensor, cells: torch.Size, padding: Padding | None
    ) -> tuple[Assignment, Tensor, RoutingStats]:
        """Who computes what, with which weight ``(n, J)``, and the figures of it.

        Experts come first in (E, n): reductions over axis 0 run several times faster than over a
        last axis of a few experts. At least float32 (also under autocast).
        """
        with torch.autocast(tokens.device.type, enabled=False):
            dtype = torch.promote_types(tokens.dtype, torch.float32)
            prob = torch.softmax(self.router.to(dtype) @ tokens.to(dtype).t(), 0)
        with torch.no_grad():
            if self.top_k == 1:
                assignment = Assignment.top1(prob.detach(), prob.amax(0))
            else:
                best = prob.topk(self.top_k, 0).indices
                assignment = Assignment.from_experts(best.t(), prob.shape[0])
        chosen = prob.flatten().index_select(0, assignment.by_token()).view(-1, self.top_k)
        stats = self._stats(prob, chosen.detach(), assignment, cells, padding)
        return assignment, self._gate_weight(chosen), stats

    def _route_top1(
        self, tokens: Tensor, cells: torch.Size, padding: Padding | None
    ) -> tuple[Assignment, Tensor, RoutingStats]:
        """``_route`` for J = 1 outside of any graph, with fewer passes over (E, n)."""
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        scores = matmul_t(self.router.to(dtype) * LOG2_E, tokens.to(dtype))
        best = scores.amax(0)
        assignment = Assignment.top1(scores, best)
        prob = scores.sub_(best).exp2_()
        chosen = prob.sum(0).reciprocal_()[:, None]  # the best expert's numerator is 1
        prob *= chosen.t()
        stats = self._stats(prob, chosen, assignment, cells, padding)
        return assignment, self._gate_weight(chosen), stats

    def _stats(
        self,
        prob: Tensor,
        chosen: Tensor,
        assignment: Assignment,
        cells: torch.Size,
        padding: Padding | None,
    ) -> RoutingStats:
        if self.balance_scope == "batch":
            dims: tuple[int, ...] = (0, 1, 2)
        else:
            dims = (1,) if self.axis == "time" else (2,)
        return routing_stats(prob, chosen, assignment, cells, dims, padding)

    def _weights(self, dtype: torch.dtype) -> Weights:
        w1, b1, w2, b2 = (self.weight1, self.bias1, self.weight2, self.bias2)
        return w1.to(dtype), b1.to(dtype), w2.to(dtype), b2.to(dtype)

    def _gate_weight(self, chosen: Tensor) -> Tensor:
        if self.top_k > 1:
            return chosen / chosen.sum(1, keepdim=True)
        if self.gate == "prob":
            return chosen
        if self.gate == "straight_through":
            return chosen / chosen.detach()
        return torch.ones_like(chosen)


def sorted_experts(x: Tensor, assignment: Assignment, gate: Tensor, weights: Weights) -> Tensor:
    """Evaluate only the chosen experts, each on its tokens at once.

    Args:
        x: tokens (n, N).
        assignment: chosen experts.
        gate: their weights (n, J).
        weights: stacked W1 (E, H, N), b1 (E, H), W2 (E, N, H), b2 (E, N).

    Returns:
        sum_j gate_j expert_j(x), ``(n, N)``.
    """
    return _SortedExperts.apply(x, gate, assignment, *weights)


class _SortedExperts(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx, x, gate, assignment, *weights):  # type: ignore[no-untyped-def]
        y = _run_experts(x, assignment, weights)
        out = torch.zeros_like(x)
        position = assignment.inverse.view(gate.shape)
        for piece in pieces(0, x.shape[0], x.device):
            for slot, weight in zip(
                position[piece].unbind(1), gate[piece].split(1, 1), strict=True
            ):
                out[piece].addcmul_(y.index_select(0, slot), weight)
        ctx.save_for_backward(x, gate, y, *weights)
        ctx.assignment = assignment
        return out

    @staticmethod
    @without_autocast
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, gate, y, *weights = ctx.saved_tensors
        assignment, grad = ctx.assignment, grad.contiguous()
        totals = [torch.zeros_like(w) for w in weights]
        factor = gate.view(-1).index_select(0, assignment.order)[:, None]
        d_gate = torch.empty_like(factor)  # both in the order of experts, as is d_slots
        d_slots = torch.empty_like(y)
        for expert, piece, tokens in _expert_pieces(assignment, x):
            count = piece.stop - piece.start
            g = grad.index_select(0, tokens)
            torch.sum(g[:count] * y[piece], 1, keepdim=True, out=d_gate[piece])
            g[:count] *= factor[piece]
            g[count:] = 0
            d_slots[piece] = expert_backward(
                x.index_select(0, tokens),
                g,
                [w[expert] for w in weights],
                [total[expert] for total in totals],
            )[:count]
        position = assignment.inverse.view(gate.shape)
        d_x = torch.empty_like(x)
        for piece in pieces(0, x.shape[0], x.device):
            first, *others = position[piece].unbind(1)
            torch.index_select(d_slots, 0, first, out=d_x[piece])
            for slot in others:
                d_x[piece] += d_slots.index_select(0, slot)
        return d_x, d_gate.view(-1)[assignment.inverse].view(gate.shape), None, *totals


def _expert_pieces(assignment: Assignment, x: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
    """(expert, its slots, their tokens) until all slots are covered.

    There may be more tokens than slots, where rows are rounded up: they read on behind the end.
    """
    tokens = F.pad(assignment.tokens(), (0, ROW_STEP))
    start = 0
    for expert, count in enumerate(assignment.counts):
        for piece in pieces(start, start + count, x.device):
            rows = rounded(piece.stop - piece.start, x)
            yield expert, piece, tokens[piece.start : piece.start + rows]
        start += count


def _run_experts(x: Tensor, assignment: Assignment, weights: Weights) -> Tensor:
    """Outputs of all slots in the order of experts ``(m, N)``, outside of any graph."""
    y = x.new_empty(assignment.order.shape[0], x.shape[1])
    for expert, piece, tokens in _expert_pieces(assignment, x):
        output = expert_forward(x.index_select(0, tokens), [w[expert] for w in weights])
        y[piece] = output[: piece.stop - piece.start]
    return y


def naive_experts(x: Tensor, assignment: Assignment, gate: Tensor, weights: Weights) -> Tensor:
    """The same expert by expert with masks and plain operations: the reference in tests."""
    w1, b1, w2, b2 = weights
    chosen = assignment.experts()
    out = torch.zeros_like(x)
    for expert in range(w1.shape[0]):
        token, choice = torch.nonzero(chosen == expert, as_tuple=True)
        y = F.linear(F.silu(F.linear(x[token], w1[expert], b1[expert])), w2[expert], b2[expert])
        out = out.index_add(0, token, y * gate[token, choice, None])
    return out
