"""Sparse mixture-of-experts feed-forward (TF-MoE, section 2.2, eqs. 2-4).

Legend: B batch, T frames, K bands, N channels, H hidden width, E experts, J chosen experts, n tokens
(time-frequency cells), m = n J slots (one chosen expert of one token).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_sepx.layers.norms import Padding

GATES = ("prob", "straight_through", "normalised")
BALANCE_SCOPES = ("sequence", "batch")


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
    """Chosen experts ``(B, T, K, J)``, best first."""
    prob: Tensor
    """Their router probabilities ``(B, T, K, J)``, detached."""


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
        self.dispatch = sorted_experts
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
        with torch.autocast(x.device.type, enabled=False):
            # Experts first: softmax and maximum over axis 0 run several times faster than over the
            # last axis of a few experts.
            dtype = torch.promote_types(tokens.dtype, torch.float32)
            prob = torch.softmax(self.router.to(dtype) @ tokens.to(dtype).t(), 0)  # (E, n)
        if self.top_k == 1:
            top, expert = (value[:, None] for value in prob.max(0))  # (n, 1)
        else:
            top, expert = (value.t() for value in prob.topk(self.top_k, 0))  # (n, J)
        y = self.dispatch(
            tokens,
            expert,
            self._gate_weight(top).to(tokens.dtype),
            self.weight1.to(tokens.dtype),
            self.bias1.to(tokens.dtype),
            self.weight2.to(tokens.dtype),
            self.bias2.to(tokens.dtype),
        )
        return y.view(x.shape), self._stats(prob, expert, top, x.shape[:3], padding)

    def _gate_weight(self, top: Tensor) -> Tensor:
        if self.top_k > 1:
            return top / top.sum(1, keepdim=True)
        if self.gate == "prob":
            return top
        if self.gate == "straight_through":
            return top / top.detach()
        return torch.ones_like(top)

    def _stats(
        self,
        prob: Tensor,
        expert: Tensor,
        top: Tensor,
        cells: torch.Size,
        padding: Padding | None,
    ) -> RoutingStats:
        """Balance loss and load: l = sum_i f_i P_i with f_i = E/(J n) #chosen, P_i = mean p_i."""
        num_experts = prob.shape[0]
        batch, frames, bands = cells
        chosen = F.one_hot(expert.reshape(batch, frames, bands, -1), num_experts).sum(3)
        chosen = chosen.to(prob.dtype)  # (B, T, K, E)
        prob = prob.view(num_experts, batch, frames, bands).permute(1, 2, 3, 0)
        best = top[:, 0].detach().view(batch, frames, bands)
        if padding is not None:
            mask = padding.like(prob)
            chosen, prob, best = chosen * mask, prob * mask, best * mask[..., 0]
        rows = self._row_dims()
        if padding is None:
            count = prob.new_full((), float(prob.shape[:3].numel()))
            row_count = prob.new_full((1,), math.prod(prob.shape[dim] for dim in rows))
            weight = row_count.new_ones(1)
        else:
            valid = padding.like(best).expand(batch, frames, bands)
            count = valid.sum()
            row_count = valid.sum(rows)
            weight = (row_count > 0).to(prob.dtype)
            row_count = row_count.clamp_min(1.0)
        share = chosen.sum(rows) / row_count[..., None] / self.top_k  # (rows, E)
        mean_prob = prob.sum(rows) / row_count[..., None]
        row_loss = num_experts * (share * mean_prob).sum(-1)
        balance = (row_loss * weight).sum() / weight.expand_as(row_loss).sum()
        return RoutingStats(
            balance=balance,
            share=chosen.sum((0, 1, 2)) / (count * self.top_k),
            top1_prob=best.sum() / count,
            expert=expert.reshape(batch, frames, bands, -1),
            prob=top.detach().reshape(batch, frames, bands, -1),
        )

    def _row_dims(self) -> tuple[int, ...]:
        """Axes of (B, T, K) that one balance set spans."""
        if self.balance_scope == "batch":
            return (0, 1, 2)
        return (1,) if self.axis == "time" else (2,)


def sorted_experts(
    x: Tensor, expert: Tensor, gate: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> Tensor:
    """Evaluate only the chosen experts: sort the slots by expert, one product per expert.

    Args:
        x: tokens (n, N).
        expert: chosen experts (n, J).
        gate: their weights (n, J).
        w1, b1, w2, b2: stacked (E, H, N), (E, H), (E, N, H), (E, N).
    """
    return _SortedExperts.apply(x, expert, gate, w1, b1, w2, b2)


class _SortedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, expert, gate, w1, b1, w2, b2):  # type: ignore[no-untyped-def]
        slots = expert.reshape(-1)
        order = torch.argsort(slots, stable=True)
        counts = torch.bincount(slots, minlength=w1.shape[0]).tolist()
        token = order if expert.shape[1] == 1 else order // expert.shape[1]
        xs = x.index_select(0, token)  # (m, N)
        hidden = x.new_empty(xs.shape[0], w1.shape[1])
        y = x.new_empty(xs.shape)
        parts = _parts(counts)
        for index, part in parts:
            torch.addmm(b1[index], xs[part], w1[index].t(), out=hidden[part])
        active = F.silu(hidden)
        for index, part in parts:
            torch.addmm(b2[index], active[part], w2[index].t(), out=y[part])
        weight = gate.reshape(-1).index_select(0, order)
        ctx.save_for_backward(xs, hidden, active, y, weight, order, token, w1, w2)
        ctx.parts = parts
        ctx.gate_shape = gate.shape
        scaled = y * weight[:, None]
        out = torch.zeros_like(x)
        if expert.shape[1] == 1:
            return out.index_copy_(0, token, scaled)
        return out.index_add_(0, token, scaled)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        xs, hidden, active, y, weight, order, token, w1, w2 = ctx.saved_tensors
        grad = grad.contiguous().index_select(0, token)
        d_gate = torch.empty_like(weight).index_copy_(0, order, (grad * y).sum(1))
        grad.mul_(weight[:, None])
        d_w1, d_w2 = torch.zeros_like(w1), torch.zeros_like(w2)
        d_b1, d_b2 = w1.new_zeros(w1.shape[:2]), w2.new_zeros(w2.shape[:2])
        d_active = torch.empty_like(hidden)
        for index, part in ctx.parts:
            torch.mm(grad[part], w2[index], out=d_active[part])
            torch.mm(grad[part].t(), active[part], out=d_w2[index])
            torch.sum(grad[part], 0, out=d_b2[index])
        d_hidden = torch.ops.aten.silu_backward(d_active, hidden)
        d_xs = torch.empty_like(xs)
        for index, part in ctx.parts:
            torch.mm(d_hidden[part], w1[index], out=d_xs[part])
            torch.mm(d_hidden[part].t(), xs[part], out=d_w1[index])
            torch.sum(d_hidden[part], 0, out=d_b1[index])
        tokens, choices = ctx.gate_shape
        d_x = xs.new_zeros(tokens, xs.shape[1])
        d_x = d_x.index_copy_(0, token, d_xs) if choices == 1 else d_x.index_add_(0, token, d_xs)
        return d_x, None, d_gate.view(ctx.gate_shape), d_w1, d_b1, d_w2, d_b2


def _parts(counts: list[int]) -> list[tuple[int, slice]]:
    """(expert, its slice of the sorted slots) for every expert that was chosen."""
    parts = []
    start = 0
    for index, count in enumerate(counts):
        if count:
            parts.append((index, slice(start, start + count)))
            start += count
    return parts


def naive_experts(
    x: Tensor, expert: Tensor, gate: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> Tensor:
    """The same as ``sorted_experts``, expert by expert with a mask: the reference in tests."""
    out = torch.zeros_like(x)
    for index in range(w1.shape[0]):
        token, choice = torch.nonzero(expert == index, as_tuple=True)
        y = F.linear(F.silu(F.linear(x[token], w1[index], b1[index])), w2[index], b2[index])
        out = out.index_add(0, token, y * gate[token, choice, None])
    return out
