"""Products that a CPU runs faster than by PyTorch's default route.

PyTorch multiplies float32 matrices by MKL, which leaves much of a non-Intel processor unused;
oneDNN, built into the same wheel, does not (twice as fast for our shapes on an AMD Zen 5). The
operator is PyTorch's own, used by its compiler, but not documented; so it is looked up once, tried,
and left alone if anything differs. ``ESPNET2_SEPX_ONEDNN=0`` in the environment switches it off.

Legend: n rows (tokens), I and O input and output widths.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Result = TypeVar("Result")
ONEDNN_VARIABLE = "ESPNET2_SEPX_ONEDNN"
LOG2_E = math.log2(math.e)
PIECE_TOKENS = 2048
"""Tokens per piece on the CPU, so that a hidden layer of about 128 stays near the cache."""
ROW_STEP = 64
"""oneDNN compiles a kernel for every new number of rows, which takes longer than the product;
numbers that depend on the data are therefore rounded up to multiples of this."""


@functools.lru_cache(maxsize=1)
def onednn_linear() -> tuple[Callable[[Tensor, Tensor, Tensor | None], Tensor] | None, str]:
    """oneDNN's ``linear(x (n, I), weight (O, I), bias)`` or None, and the reason in words."""
    if os.environ.get(ONEDNN_VARIABLE, "1") == "0":
        return None, f"switched off by {ONEDNN_VARIABLE}=0"
    try:
        operator = torch.ops.mkldnn._linear_pointwise.default
    except AttributeError:
        return None, "this PyTorch build has no oneDNN linear operator"

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return operator(x, weight, bias, "none", [], "")

    try:
        random = torch.Generator().manual_seed(0)  # the caller's random numbers stay as they are
        x, weight, bias = (torch.randn(size, generator=random) for size in ((5, 3), (3, 4), (4,)))
        same = torch.allclose(linear(x, weight.t(), bias), F.linear(x, weight.t(), bias), atol=1e-5)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return None, f"oneDNN's linear operator fails here: {error}"
    if not same:
        return None, "oneDNN's linear operator gives other values here"
    return linear, "oneDNN multiplies float32 matrices on the CPU"


@functools.lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MB that tensors have freed, instead of returning it at once.

    Features of a second of audio are about as large as the blocks that glibc by default maps anew
    for every tensor; fetching the pages then takes longer than the arithmetic. glibc raises its
    thresholds to the largest block below 32 MB that it has ever freed; so one is freed here, which
    is never written to. Other C libraries do not care.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def matmul_t(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias for ``x (n, I)``, ``weight (O, I)``, outside of any graph."""
    if x.dtype == torch.float32 and x.device.type == "cpu":
        fast = onednn_linear()[0]
        if fast is not None:
            return fast(x, weight, bias)
    return F.linear(x, weight, bias)


def row_step(x: Tensor) -> int:
    """Numbers of rows that depend on the data should be a multiple of this, for rows like ``x``."""
    return ROW_STEP if _uses_onednn(x) else 1


def _uses_onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and onednn_linear()[0] is not None


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """grad^T x ``(O, I)`` for ``grad (n, O)``, ``x (n, I)``."""
    if grad.shape[1] <= x.shape[1]:  # the narrower one is the one that gets transposed in memory
        return matmul_t(grad.t(), x.t())
    return matmul_t(x.t(), grad.t()).t()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return matmul_t(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        d_x = matmul_t(grad, weight.t()) if ctx.needs_input_grad[0] else None
        d_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return d_x, weight_gradient(grad, x), d_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` by the fastest route of this machine."""
    fast = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if not fast or torch.is_autocast_enabled("cpu") or onednn_linear()[0] is None:
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    y = (
        _Linear.apply(flat, weight, bias)
        if torch.is_grad_enabled()
        else matmul_t(flat, weight, bias)
    )
    return y.view(*x.shape[:-1], -1)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype autocast wants for products of ``x``, outside of autocast that of ``x``."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def may_infer(layer: nn.Module, x: Tensor) -> bool:
    """Whether ``layer`` may work in place on ``x``: no graph, no dropout, one dtype throughout of
    at least float32."""
    return (
        not layer.training
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)
        and torch.promote_types(x.dtype, torch.float32) == x.dtype
    )


def without_autocast(function: Callable[..., Result]) -> Callable[..., Result]:
    """For forward and backward of autograd functions: computes in the dtypes it is given."""

    @functools.wraps(function)
    def wrapped(ctx: object, x: Tensor, *args: object) -> Result:
        with torch.autocast(x.device.type, enabled=False):
            return function(ctx, x, *args)

    return wrapped


def pieces(start: int, stop: int, device: torch.device) -> list[slice]:
    """Cut a range of tokens into even pieces that fit the cache; on an accelerator into one."""
    count = stop - start
    nearest = (2 * count + PIECE_TOKENS) // (2 * PIECE_TOKENS)
    parts = max(1, nearest) if device.type == "cpu" else 1
    size = max(ROW_STEP, -(-count // (parts * ROW_STEP)) * ROW_STEP)
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]
