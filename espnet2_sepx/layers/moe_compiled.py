"""Each token through its best expert, with routing and the moving of rows in compiled code.

For float32 on the CPU and J = 1; ``moe`` does the rest, with the same results. The products of the
experts are the same in both. Here their rows are gathered just before and scattered just after,
while they are in the cache, and nothing else of the tokens' size is written but what backward needs
(``native/mixture.h``).

Legend: n tokens, N channels, E experts, M lanes, R balance rows.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet2_sepx.layers.feed_forward import Weights, expert_backward, expert_forward
from espnet2_sepx.layers.kernels import pieces, row_step, without_autocast
from espnet2_sepx.layers.native import build
from espnet2_sepx.layers.native.binding import Int, Pointer, address, try_out
from espnet2_sepx.layers.routing import BalanceRows

VARIABLE = "ESPNET2_SEPX_MOE_KERNEL"
MAX_EXPERTS = 256
LANES = 16
"""What M is a multiple of."""
MIN_TOKENS = 512
"""Tokens that are worth a thread."""


class _Mixture(ctypes.Structure):
    _fields_ = [
        *((name, Pointer) for name in ("x", "router")),
        *((name, Int) for name in ("tokens", "width", "experts", "lanes", "threads")),
    ]


class _Rows(ctypes.Structure):
    _fields_ = [("valid", Pointer), *((name, Int) for name in ("number", "span", "stride"))]


class _Backward(ctypes.Structure):
    _fields_ = [
        *((name, Pointer) for name in ("prob", "best", "row", "sums", "grad", "out")),
        *((name, Int) for name in ("weighted", "learns")),
    ]


_ARGUMENTS = {
    "route": [Pointer] * 9,
    "sort": [Pointer, Int, Int, Pointer, Pointer],
    "gather": [Pointer, Pointer, Int, Int, Pointer],
    "scatter": [Pointer, Pointer, Int, Pointer, Pointer, ctypes.c_float, Int, Pointer],
    "gather_backward": [Pointer, Pointer, Pointer, Int, Int, Int, *[Pointer] * 3],
    "scatter_backward": [Pointer, Pointer, Int, *[Pointer] * 5],
}
"""Of ``sepx_moe_`` and each name."""


class Kernel:
    """The functions of one build of the library."""

    route: Callable[..., None]
    sort: Callable[..., None]
    gather: Callable[..., None]
    scatter: Callable[..., None]
    gather_backward: Callable[..., None]
    scatter_backward: Callable[..., None]

    def __init__(self, isa: str) -> None:
        library = build.load(isa)
        for name, types in _ARGUMENTS.items():
            function = getattr(library, f"sepx_moe_{name}")
            function.argtypes, function.restype = types, None
            setattr(self, name, function)


@functools.lru_cache(maxsize=1)
def probe() -> tuple[Kernel | None, str]:
    """The kernel for this processor after a trial, or None; and the reason in words."""
    return try_out(Kernel, _agrees)


def explain() -> tuple[bool, str]:
    """Whether the kernel is used where it can be, and why or why not."""
    if os.environ.get(VARIABLE, "1") == "0":
        return False, f"switched off by {VARIABLE}=0"
    kernel, reason = probe()
    return kernel is not None, reason


def fits(x: Tensor, router: Tensor, top_k: int) -> bool:
    """Whether tokens ``(n, N)`` are routed by the kernel."""
    return (
        top_k == 1
        and x.dtype == router.dtype == torch.float32
        and x.device.type == "cpu"
        and x.shape[0] > 0
        and router.shape[0] <= MAX_EXPERTS
        and explain()[0]
    )


def _kernel() -> Kernel:
    """The kernel, which the caller knows to be there."""
    kernel, reason = probe()
    if kernel is None:
        raise RuntimeError(reason)
    return kernel


def _mixture(x: Tensor, router: Tensor) -> _Mixture:
    (tokens, width), experts = x.shape, router.shape[0]
    lanes = -(-experts // LANES) * LANES
    threads = max(1, min(torch.get_num_threads(), tokens // MIN_TOKENS))
    return _Mixture(address(x), address(router), tokens, width, experts, lanes, threads)


@dataclass
class Routes:
    """Where tokens go."""

    prob: Tensor
    """Router probabilities ``(n, M)``, or ``(0, M)`` if they are not kept."""
    expert: Tensor
    """Best expert ``(n,)`` int16."""
    best: Tensor
    """Its probability ``(n,)``."""
    row: Tensor
    """Balance row ``(n,)`` int32; R for tokens that are not valid."""
    prob_sum: Tensor
    """Probabilities, summed over the rows: ``(E, R)``."""
    choice_sum: Tensor
    """Tokens of the rows that chose an expert, ``(E, R)``."""


LIBRARY = torch.library.Library("espnet2_sepx", "FRAGMENT")
LIBRARY.define(
    "route_to_best(Tensor x, Tensor router, Tensor? valid, int rows, int span, int stride,"
    " bool keep_prob) -> Tensor[]"
)


def route(x: Tensor, router: Tensor, rows: BalanceRows, *, keep_prob: bool) -> Routes:
    """The best expert of tokens ``(n, N)`` by a router ``(E, N)``, and what the balance loss needs.

    Goes through PyTorch's dispatcher, so that the MAC counter sees it.
    """
    return Routes(
        *torch.ops.espnet2_sepx.route_to_best(
            x, router, rows.valid(), rows.number, rows.span, rows.stride, keep_prob
        )
    )


def _route_to_best(*args):  # type: ignore[no-untyped-def]
    return _route(_kernel(), *args)


def _route(
    kernel: Kernel,
    x: Tensor,
    router: Tensor,
    valid: Tensor | None,
    number: int,
    span: int,
    stride: int,
    keep_prob: bool,
) -> list[Tensor]:
    """The fields of ``Routes``."""
    mixture, rows = _mixture(x, router), _Rows(address(valid), number, span, stride)
    tokens, experts, lanes = x.shape[0], router.shape[0], mixture.lanes
    prob = x.new_empty(tokens if keep_prob else 0, lanes)
    expert = x.new_empty(tokens, dtype=torch.int16)
    best, row = x.new_empty(tokens), x.new_empty(tokens, dtype=torch.int32)
    sums = x.new_zeros(2, mixture.threads, number + 1, lanes)
    packed = x.new_empty(x.shape[1], lanes)
    kernel.route(
        ctypes.addressof(mixture),
        ctypes.addressof(rows),
        address(packed),
        address(prob) if keep_prob else None,
        *map(address, (expert, best, row, *sums)),
    )
    sums = sums.sum(1)[:, :number, :experts].transpose(1, 2)
    return [prob, expert, best, row, *sums.unbind()]


LIBRARY.impl("route_to_best", _route_to_best, "CompositeExplicitAutograd")


class Tokens:
    """Tokens ``(n, N)`` on their way through the experts that a router ``(E, N)`` chose."""

    def __init__(self, x: Tensor, router: Tensor, expert: Tensor) -> None:
        self._kernel, self._x = _kernel(), x
        self._struct, self._kept = _mixture(x, router), (x, router)
        self._this = ctypes.addressof(self._struct)
        self._order = expert.new_empty(expert.shape, dtype=torch.int32)
        counts = (Int * router.shape[0])()
        self._kernel.sort(
            address(expert),
            len(expert),
            len(counts),
            address(self._order),
            ctypes.addressof(counts),
        )
        self._counts = list(counts)

    def runs(self, *stacked: Weights) -> Iterator[tuple]:
        """(expert, its tokens, its part of each of ``stacked``), in pieces that fit the cache."""
        parts = zip(*(zip(*(w.unbind(0) for w in ws), strict=True) for ws in stacked), strict=True)
        start = 0
        for index, (count, part) in enumerate(zip(self._counts, parts, strict=True)):
            for piece in pieces(start, start + count, self._order.device):
                yield index, self._order[piece], *part
            start += count

    def gather(self, tokens: Tensor) -> Tensor:
        """Rows of some tokens, with zeros below up to a number that ``row_step`` wants."""
        rows = self._x.new_empty(self._padded(tokens), self._x.shape[1])
        self._kernel.gather(self._this, address(tokens), len(tokens), len(rows), address(rows))
        return rows

    def scatter(
        self, tokens: Tensor, rows: Tensor, weight: Tensor | None, y: Tensor, *, add: float = 0.0
    ) -> None:
        """y[tokens] = weight rows; or, with ``add``, y[tokens] += add weight rows."""
        self._kernel.scatter(
            self._this,
            address(tokens),
            len(tokens),
            address(rows),
            address(weight),
            add or 1.0,
            add != 0.0,
            address(y),
        )

    def gather_backward(self, tokens: Tensor, index: int, at_hand: _Backward) -> list[Tensor]:
        """Of some tokens of expert ``index``: rows of x, of the gradient of the expert's output, of
        the gradient of the scores."""
        padded, width, new = self._padded(tokens), self._x.shape[1], self._x.new_empty
        rows = [new(padded, width), new(padded, width), new(len(tokens), self._struct.lanes)]
        self._kernel.gather_backward(
            self._this,
            ctypes.addressof(at_hand),
            address(tokens),
            len(tokens),
            padded,
            index,
            *map(address, rows),
        )
        return rows

    def scatter_backward(
        self, tokens: Tensor, rows: Tensor, x: Tensor, score: Tensor, d_x: Tensor, d_router: Tensor
    ) -> None:
        """d_x[tokens] = rows + score router; d_router (threads, E, N) += score^T x."""
        self._kernel.scatter_backward(
            self._this,
            address(tokens),
            len(tokens),
            *map(address, (rows, x, score, d_x, d_router)),
        )

    @property
    def threads(self) -> int:
        return self._struct.threads

    def _padded(self, tokens: Tensor) -> int:
        return len(tokens) + -len(tokens) % row_step(self._x)


class CompiledMixture(torch.autograd.Function):
    """Tokens ``(n, N)`` through their experts.

    Returns outputs (n, N), sums of probabilities and of choices over the balance rows (E, R), the
    chosen experts (n,) int16 and their probabilities (n,), without a gradient.

    Args:
        x, router: ``(n, N)``, ``(E, N)``.
        rows: the balance rows.
        weighted: whether an output is multiplied by its expert's probability.
        learns: whether that probability gets a gradient from the outputs.
        weights: those of the experts, stacked.
    """

    @staticmethod
    @without_autocast
    def forward(ctx, x, router, rows, weighted, learns, *weights):  # type: ignore[no-untyped-def]
        x = x.contiguous()
        routes = route(x, router, rows, keep_prob=True)
        tokens = Tokens(x, router, routes.expert)
        out = torch.empty_like(x)
        for _, some, expert in tokens.runs(weights):
            y = expert_forward(tokens.gather(some), expert)
            tokens.scatter(some, y, routes.best if weighted else None, out)
        ctx.save_for_backward(
            x, router, out, routes.prob, routes.best, routes.row, routes.expert, *weights
        )
        ctx.weighted, ctx.learns = weighted, learns
        ctx.mark_non_differentiable(routes.choice_sum, routes.expert, routes.best)
        return out, routes.prob_sum, routes.choice_sum, routes.expert, routes.best

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(ctx, grad, d_sum, *_):  # type: ignore[no-untyped-def]
        x, router, out, prob, best, row, expert, *weights = ctx.saved_tensors
        grad = grad.contiguous()
        d_sum = F.pad(d_sum.t(), (0, prob.shape[1] - router.shape[0], 0, 1)).contiguous()
        at_hand = _Backward(
            *map(address, (prob, best, row, d_sum, grad, out)), ctx.weighted, ctx.learns
        )
        tokens = Tokens(x, router, expert)
        totals = [torch.zeros_like(w) for w in weights]
        d_x, d_router = torch.empty_like(x), router.new_zeros(tokens.threads, *router.shape)
        for index, some, expert_weights, expert_totals in tokens.runs(weights, totals):
            rows, g, score = tokens.gather_backward(some, index, at_hand)
            d_rows = expert_backward(rows, g, expert_weights, expert_totals)
            tokens.scatter_backward(some, d_rows, rows, score, d_x, d_router)
        return d_x, d_router.sum(0), None, None, None, *totals


def add_to(
    y: Tensor,
    x: Tensor,
    router: Tensor,
    rows: BalanceRows,
    weighted: bool,
    weights: Weights,
    factor: float,
) -> Routes:
    """y += factor * experts(x) in place for ``(n, N)`` both, outside of any graph."""
    routes = route(x, router, rows, keep_prob=False)
    tokens = Tokens(x, router, routes.expert)
    for _, some, expert in tokens.runs(weights):
        rows_of_y = expert_forward(tokens.gather(some), expert)
        tokens.scatter(some, rows_of_y, routes.best if weighted else None, y, add=factor)
    return routes


def _agrees(kernel: Kernel) -> bool:
    """A trial on numbers with a known answer: token i looks like expert i."""
    eye = torch.eye(3)
    _, expert, best, _, prob_sum, choice_sum = _route(kernel, eye, eye, None, 1, 3, 1, False)
    expected = torch.full((3,), math.e / (math.e + 2))
    return (
        expert.tolist() == [0, 1, 2]
        and torch.allclose(best, expected, atol=1e-6)
        and torch.allclose(prob_sum, torch.ones(3, 1), atol=1e-6)
        and choice_sum.tolist() == [[1.0]] * 3
    )
