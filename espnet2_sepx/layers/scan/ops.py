"""The scan and the convolution as operators of PyTorch's dispatcher.

So that whoever watches the dispatcher (the MAC counter, tracing) sees one operator with a known
rule, whatever computes it. They record no graph; `scan/functions.py` differentiates them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet2_sepx.layers.scan import backends, compiled, portable
from espnet2_sepx.layers.scan.inputs import ScanGrads, ScanInputs

LIBRARY = torch.library.Library("espnet2_sepx", "FRAGMENT")
LIBRARY.define(
    "selective_scan(Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z,"
    " Tensor? dt_bias, Tensor? h0, bool dt_softplus, bool reverse, str backend)"
    " -> (Tensor, Tensor)"
)
LIBRARY.define(
    "causal_conv_silu(Tensor x, Tensor weight, Tensor bias, Tensor? before, bool reverse,"
    " str backend) -> Tensor"
)


def scan_forward(inputs: ScanInputs, backend: str) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the last states (B, N, D), outside of any graph."""
    return torch.ops.espnet2_sepx.selective_scan(
        *inputs.tensors(), inputs.dt_softplus, inputs.reverse, backend
    )


def scan_backward(
    inputs: ScanInputs, backend: str, grad: Tensor, grad_last: Tensor | None
) -> ScanGrads:
    implementation = kernel() if backend == "cpu" else portable
    return implementation.backward(inputs, grad, grad_last)


def kernel() -> compiled.Kernel:
    """The compiled kernel, which the caller knows to be there."""
    found, reason = compiled.probe()
    if found is None:
        raise RuntimeError(reason)
    return found


def _selective_scan(u, dt, A, B, C, D, z, dt_bias, h0, dt_softplus, reverse, backend):  # type: ignore[no-untyped-def]
    inputs = ScanInputs(u, dt, A, B, C, D, z, dt_bias, h0, dt_softplus, reverse)
    implementation = kernel() if backend == "cpu" else portable
    return implementation.forward(inputs)


def _causal_conv_silu(x, weight, bias, before, reverse, backend):  # type: ignore[no-untyped-def]
    if uses_kernel(x, weight, backend):
        return kernel().conv_forward(x, weight, bias, before, reverse)
    return F.silu(conv_before_silu(x, weight, bias, before, reverse))


def uses_kernel(x: Tensor, weight: Tensor, backend: str) -> bool:
    """Whether the compiled convolution is used for these tensors."""
    if backends.resolve(backend) not in ("auto", "cpu"):
        return False
    fits = x.device.type == "cpu" and x.dtype == torch.float32
    return fits and weight.shape[0] <= compiled.MAX_TAPS and compiled.probe()[0] is not None


def conv_before_silu(
    x: Tensor, weight: Tensor, bias: Tensor, before: Tensor | None, reverse: bool
) -> Tensor:
    """Depthwise convolution of ``x`` (B, L, D) with ``weight`` (K, D), tap by tap."""
    taps, length = weight.shape[0], x.shape[1]
    pad = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if before is None else before
    padded = torch.cat((x, pad.flip(1)) if reverse else (pad, x), 1)
    y = bias.expand_as(x)
    for k in range(taps):
        at = taps - 1 - k if reverse else k
        y = torch.addcmul(y, padded[:, at : at + length], weight[k])
    return y


def _scan_shapes(u, dt, A, *others):  # type: ignore[no-untyped-def]
    return u.new_empty(u.shape), u.new_empty(u.shape[0], *A.shape)


def _conv_shapes(x, *others):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


LIBRARY.impl("selective_scan", _selective_scan, "CompositeExplicitAutograd")
LIBRARY.impl("causal_conv_silu", _causal_conv_silu, "CompositeExplicitAutograd")
torch.library.register_fake("espnet2_sepx::selective_scan", _scan_shapes, lib=LIBRARY)
torch.library.register_fake("espnet2_sepx::causal_conv_silu", _conv_shapes, lib=LIBRARY)
