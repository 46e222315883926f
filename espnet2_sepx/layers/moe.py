"""Sparse mixture-of-experts feed-forward (TF-MoE, section 2.2, eqs. 2-4).

Legend: B batch, T frames, K bands, N channels, H hidden width, E experts, J chosen experts, n
tokens (time-frequency cells).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from espnet2_sepx.layers import moe_compiled
from espnet2_sepx.layers.feed_forward import Weights, expert_backward, expert_forward
from espnet2_sepx.layers.kernels import (
    compute_dtype,
    matmul_t,
    pieces,
    row_step,
    without_autocast,
)
from espnet2_sepx.layers.moe_compiled import CompiledMixture
from espnet2_sepx.layers.norms import Padding
from espnet2_sepx.layers.routing import (
    Assignment,
    BalanceRows,
    Dispatch,
    RoutingStats,
    routing_stats,
)

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
    All start from the same weights and part ways by the tokens they see, so that in the beginning
    each token teaches a network it would have met in any expert. The paper does not say how it
    starts; from independent weights ``mini`` learns markedly more slowly.

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
            bound = 1.0 / math.sqrt(fan_in)  # as nn.Linear initialises
            nn.init.uniform_(tensor, -bound, bound)
        with torch.no_grad():
            for stacked in self._weights():
                stacked[1:] = stacked[:1]

    def forward(self, x: Tensor, padding: Padding | None = None) -> tuple[Tensor, RoutingStats]:
        dtype, rows = compute_dtype(x), self._rows(x, padding)
        tokens = x.reshape(-1, x.shape[-1]).to(dtype)
        weights = tuple(w.to(dtype) for w in self._weights())
        if moe_compiled.fits(tokens, self.router, self.top_k):
            y, *routes = CompiledMixture.apply(
                tokens, self.router, rows, self.gate == "prob", self.gate != "normalised", *weights
            )
            stats = _stats_of_best(rows, *routes)
        else:
            y, prob, chosen, assignment = _Mixture.apply(
                tokens, self.router, self.top_k, self.gate, *weights
            )
            stats = _stats(prob, assignment, rows, chosen)
        return y.view(x.shape), stats

    def add_to(
        self, x: Tensor, norm: nn.LayerNorm, factor: float, padding: Padding | None
    ) -> RoutingStats:
        """x += factor * experts(norm(x)) in place, outside of any graph."""
        target, rows = x.view(-1, x.shape[-1]), self._rows(x, padding)
        tokens, weights = norm(target), self._weights()
        if moe_compiled.fits(tokens, self.router, self.top_k):
            routes = moe_compiled.add_to(
                target, tokens, self.router, rows, self.gate == "prob", weights, factor
            )
            return _stats_of_best(
                rows, routes.prob_sum, routes.choice_sum, routes.expert, routes.best
            )
        prob, chosen, assignment = _route(tokens, self.router, self.top_k)
        dispatch = assignment.dispatch(row_step(x))
        y = _run_experts(tokens, dispatch, weights)
        gate = gate_weight(self.gate, chosen).to(x.dtype)
        for piece in pieces(0, target.shape[0], x.device):
            for row, weight in _choices(dispatch.row[piece], gate[piece]):
                target[piece].addcmul_(y.index_select(0, row), weight, value=factor)
        return _stats(prob, assignment, rows, chosen)

    def _weights(self) -> Weights:
        return self.weight1, self.bias1, self.weight2, self.bias2

    def _rows(self, x: Tensor, padding: Padding | None) -> BalanceRows:
        dims = (1,) if self.axis == "time" else (2,)
        return BalanceRows(
            x.shape[:3], (0, 1, 2) if self.balance_scope == "batch" else dims, padding
        )


def _stats(prob: Tensor, assignment: Assignment, rows: BalanceRows, chosen: Tensor) -> RoutingStats:
    prob_sum, choice_sum = rows.sums(prob), rows.sums(assignment.picked)
    return routing_stats(prob_sum, choice_sum, rows, assignment.expert, chosen)


def _stats_of_best(
    rows: BalanceRows, prob_sum: Tensor, choice_sum: Tensor, expert: Tensor, best: Tensor
) -> RoutingStats:
    """For J = 1, from experts and probabilities ``(n,)``."""
    return routing_stats(prob_sum, choice_sum, rows, expert[:, None], best[:, None])


def gate_weight(gate: str, chosen: Tensor) -> Tensor:
    """Weights of the chosen experts from their probabilities, ``(n, J)`` both."""
    if chosen.shape[1] > 1:
        return chosen / chosen.sum(1, keepdim=True)
    return chosen if gate == "prob" else torch.ones_like(chosen)


def _gate_backward(gate: str, chosen: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the probabilities from that of the weights."""
    if chosen.shape[1] > 1:
        total = chosen.sum(1, keepdim=True)
        return (grad - (grad * chosen).sum(1, keepdim=True) / total) / total
    if gate == "prob":
        return grad
    return grad / chosen if gate == "straight_through" else torch.zeros_like(grad)


class _Mixture(torch.autograd.Function):
    """Tokens ``(n, N)`` through their experts, sorted so that each expert runs once on its own.

    Returns outputs, router probabilities (E, n), those of the chosen experts (n, J), without a
    gradient, and who chose what.
    """

    @staticmethod
    @without_autocast
    def forward(ctx, x, router, top_k, gate, *weights):  # type: ignore[no-untyped-def]
        prob, chosen, assignment = _route(x, router, top_k)
        dispatch = assignment.dispatch(row_step(x))
        y = _run_experts(x, dispatch, weights)
        factor = gate_weight(gate, chosen).to(x.dtype)
        out = torch.empty_like(x)
        for piece in pieces(0, x.shape[0], x.device):
            (row, weight), *others = _choices(dispatch.row[piece], factor[piece])
            torch.mul(y.index_select(0, row), weight, out=out[piece])
            for row, weight in others:
                out[piece].addcmul_(y.index_select(0, row), weight)
        ctx.save_for_backward(x, router, y, prob, chosen, *weights)
        ctx.gate, ctx.expert, ctx.dispatch = gate, assignment.expert, dispatch
        ctx.mark_non_differentiable(chosen)
        return out, prob, chosen, assignment

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(ctx, grad, d_prob, *_):  # type: ignore[no-untyped-def]
        x, router, y, prob, chosen, *weights = ctx.saved_tensors
        dispatch = ctx.dispatch
        totals = [torch.zeros_like(w) for w in weights]
        d_rows = torch.empty_like(y)
        d_gate = y.new_empty(y.shape[0])
        factor = dispatch.spread(gate_weight(ctx.gate, chosen).to(x.dtype))
        for piece, *expert in _expert_pieces(dispatch, x.device, weights, totals):
            tokens = dispatch.token[piece]
            g = grad.index_select(0, tokens)
            torch.sum(g * y[piece], 1, out=d_gate[piece])
            g *= factor[piece]
            d_rows[piece] = expert_backward(x.index_select(0, tokens), g, *expert)
        d_chosen = _gate_backward(ctx.gate, chosen, d_gate[dispatch.row].to(chosen.dtype))
        d_prob = d_prob.scatter_add(0, ctx.expert.long().t(), d_chosen.t())
        d_logit = torch._softmax_backward_data(d_prob, prob, 0, prob.dtype)
        d_router = matmul_t(d_logit, x.to(prob.dtype).t()).to(router.dtype)
        d_x, from_router = torch.empty_like(x), router.to(x.dtype)
        d_logit = d_logit.to(x.dtype)
        for piece in pieces(0, x.shape[0], x.device):
            first, *others = dispatch.row[piece].unbind(1)
            d = torch.index_select(d_rows, 0, first, out=d_x[piece])
            for row in others:
                d += d_rows.index_select(0, row)
            d.addmm_(d_logit[:, piece].t(), from_router)
        return d_x, d_router, None, None, *totals


def _route(x: Tensor, router: Tensor, top_k: int) -> tuple[Tensor, Tensor, Assignment]:
    """softmax(W_g x) as (E, n), its chosen entries (n, J), and the assignment, without a graph.

    Experts come first: reductions over axis 0 run several times faster than over a last axis of a
    few experts. At least float32.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    prob = torch.softmax(matmul_t(router.to(dtype), x.to(dtype)), 0)
    # topk does not say which of equals comes first
    chosen, expert = prob.max(0, keepdim=True) if top_k == 1 else prob.topk(top_k, 0)
    return prob, chosen.t(), Assignment.of(expert.t(), prob)


def _run_experts(x: Tensor, dispatch: Dispatch, weights: Weights) -> Tensor:
    """Outputs of the rows of ``dispatch`` for tokens ``(n, N)``, without a graph."""
    y = x.new_empty(dispatch.token.shape[0], x.shape[1])
    for piece, expert in _expert_pieces(dispatch, x.device, weights):
        y[piece] = expert_forward(x.index_select(0, dispatch.token[piece]), expert)
    return y


def _expert_pieces(dispatch: Dispatch, device: torch.device, *stacked: Weights) -> Iterator[tuple]:
    """(rows, this expert's part of each of ``stacked``) until all rows are covered."""
    experts = zip(*(zip(*(w.unbind(0) for w in ws), strict=True) for ws in stacked), strict=True)
    for run, expert in zip(dispatch.runs, experts, strict=True):
        for piece in pieces(run.start, run.stop, device):
            yield piece, *expert


def _choices(rows: Tensor, gate: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Column by column of two ``(n, J)``: rows (n,), weights (n, 1)."""
    return zip(rows.unbind(1), gate.split(1, 1), strict=True)
