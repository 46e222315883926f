"""The selective scan and its convolution as differentiable functions.

Legend: B sequences, L steps, D channels, N states per channel, K taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet2_sepx.layers.scan import backends, mamba_package, ops, reference
from espnet2_sepx.layers.scan.inputs import ScanInputs


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    h0: Tensor | None = None,
    reverse: bool = False,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t, y_t = (C_t . h_t + D u_t) silu(z_t).

    Computes in float32 (float64 if ``u`` is) whatever autocast says. Training keeps the inputs and
    nothing else; no back end but ``reference`` holds more than a few steps of (B, N, D) at a time.

    Args:
        u, dt: input and step size (B, L, D).
        A: (N, D), negative.
        B, C: (B, L, N).
        D: skip connection (D).
        z: gate (B, L, D).
        dt_bias: added to dt (D).
        dt_softplus: dt goes through softplus, after the bias.
        h0: states before the first step (B, N, D).
        reverse: run from the last step to the first.
        return_state: also return the states after the last step in order of the run (B, N, D).
        backend: see ``espnet2_sepx.layers.scan.backends``.

    Returns:
        y (B, L, D) in the dtype of ``u``, perhaps the state.

    Raises:
        ValueError: shapes that do not fit, an unknown back end, or one that cannot be used.
    """
    inputs = ScanInputs(u, dt, A, B, C, D, z, dt_bias, h0, dt_softplus, reverse)
    inputs.check()
    chosen = backends.choose(backend, u, A.shape[0], h0 is not None)
    dtype = u.dtype
    with torch.autocast(u.device.type, enabled=False):
        inputs = inputs.to(torch.float64 if dtype == torch.float64 else torch.float32)
        if chosen == "reference":
            y, last = reference.scan(inputs)
        elif chosen == "mamba_ssm":
            y, last = mamba_package.scan(inputs)
        elif inputs.needs_grad():
            y, last = _SelectiveScan.apply(chosen, dt_softplus, reverse, *inputs.tensors())
        else:
            y, last = ops.scan_forward(inputs, chosen)
    y = y.to(dtype)
    return (y, last) if return_state else y


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, dt_softplus, reverse, *tensors):  # type: ignore[no-untyped-def]
        inputs = ScanInputs(*tensors, dt_softplus=dt_softplus, reverse=reverse)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.options = backend, dt_softplus, reverse
        return ops.scan_forward(inputs, backend)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_last):  # type: ignore[no-untyped-def]
        backend, dt_softplus, reverse = ctx.options
        inputs = ScanInputs(*ctx.saved_tensors, dt_softplus=dt_softplus, reverse=reverse)
        grad = torch.zeros_like(inputs.u) if grad is None else grad
        with torch.autocast(grad.device.type, enabled=False):
            grads = ops.scan_backward(inputs, backend, grad, grad_last).tensors()
        needed = ctx.needs_input_grad[3:]
        return None, None, None, *(g if n else None for g, n in zip(grads, needed, strict=True))


def causal_conv_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    before: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """silu of a depthwise convolution that sees a step and the K - 1 before it.

    In float32 whatever autocast says.

    Args:
        x: (B, L, D).
        weight: (K, D), oldest tap first.
        bias: (D).
        before: the K - 1 steps before the first (B, K - 1, D), zero if not given; without gradient.
        reverse: "before" means later; ``before`` is still in order of the run.
        backend: "auto" and "cpu" use the compiled kernel where it can be used, others PyTorch.

    Returns:
        (B, L, D) in the dtype of ``x``.
    """
    dtype = x.dtype
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        x, weight, bias = x.to(wide), weight.to(wide), bias.to(wide)
        before = None if before is None else before.to(wide)
        if not torch.is_grad_enabled():
            y = torch.ops.espnet2_sepx.causal_conv_silu(x, weight, bias, before, reverse, backend)
        elif before is None and ops.uses_kernel(x, weight, backend):
            y = _CausalConvSiLU.apply(x, weight, bias, reverse)
        else:
            y = F.silu(ops.conv_before_silu(x, weight, bias, before, reverse))
    return y.to(dtype)


class _CausalConvSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, reverse):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight, bias)
        ctx.reverse = reverse
        return torch.ops.espnet2_sepx.causal_conv_silu(x, weight, bias, None, reverse, "cpu")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight, bias = ctx.saved_tensors
        grads = ops.kernel().conv_backward(x, weight, bias, ctx.reverse, grad)
        return *(g if n else None for g, n in zip(grads, ctx.needs_input_grad, strict=False)), None
