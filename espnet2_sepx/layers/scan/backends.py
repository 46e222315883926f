"""Which implementation of the scan is used, and why.

``auto`` takes the first of these that can work on the tensors at hand:

    mamba_ssm   CUDA, when that package's extension can be imported
    cpu         float32 on the CPU, when a C compiler is (or once was) there
    torch       everything else: any device, any dtype

``reference``, the definition step by step, is used only by name. A back end named by an argument or
by the environment variable ``ESPNET2_SEPX_SCAN`` that cannot work on the tensors is an error, never
replaced silently.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from espnet2_sepx.layers.scan import compiled, mamba_package

VARIABLE = "ESPNET2_SEPX_SCAN"
AUTO = ("mamba_ssm", "cpu", "torch")
BACKENDS = (*AUTO, "reference")


def choose(wanted: str, u: Tensor, state: int, has_first_state: bool = False) -> str:
    """Name of the back end for tensors like ``u`` with ``state`` states per channel.

    Raises:
        ValueError: an unknown name, or a named back end that cannot work on these tensors.
    """
    wanted = resolve(wanted)
    if wanted == "auto":
        return next(name for name in AUTO if not obstacle(name, u, state, has_first_state))
    if reason := obstacle(wanted, u, state, has_first_state):
        raise ValueError(f"scan backend {wanted!r} cannot be used: {reason}")
    return wanted


def resolve(wanted: str) -> str:
    """``auto`` replaced by what the environment says, if it says anything; checked."""
    if wanted == "auto":
        wanted = os.environ.get(VARIABLE) or "auto"
    if wanted != "auto" and wanted not in BACKENDS:
        raise ValueError(f"scan backend must be auto or one of {BACKENDS}, got {wanted!r}")
    return wanted


def obstacle(name: str, u: Tensor, state: int, has_first_state: bool = False) -> str:
    """Why a back end cannot work on tensors like ``u``; empty if it can."""
    if name == "cpu":
        if u.device.type != "cpu":
            return f"the tensors are on {u.device.type}"
        if u.dtype == torch.float64:
            return "it computes in float32, the tensors are float64"
        if state > compiled.MAX_STATE:
            return f"it holds at most {compiled.MAX_STATE} states per channel, got {state}"
        kernel, reason = compiled.probe()
        return "" if kernel is not None else reason
    if name == "mamba_ssm":
        if u.device.type != "cuda":
            return f"the tensors are on {u.device.type}"
        if u.dtype == torch.float64:
            return "it computes in float32, the tensors are float64"
        if has_first_state:
            return "it starts from states of zero only"
        function, reason = mamba_package.probe()
        return "" if function is not None else reason
    return ""


def explain() -> list[tuple[str, bool, str]]:
    """(name, usable on this machine, why or why not) of every automatic back end."""
    kernel, kernel_reason = compiled.probe()
    function, reason = mamba_package.probe()
    if not torch.cuda.is_available():
        more = f"; {reason}" if function is None and mamba_package.installed() else ""
        function, reason = None, f"torch sees no CUDA device{more}"
    return [
        ("mamba_ssm", function is not None, reason),
        ("cpu", kernel is not None, kernel_reason),
        ("torch", True, "portable scan, any device"),
    ]
