"""The scan of the package mamba-ssm on CUDA, if its compiled extension is really there.

``import mamba_ssm`` alone proves nothing: older releases fail in it without the extension, newer
ones import and raise only when the scan is called. So the extension itself is imported first.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable

from torch import Tensor

from espnet2_sepx.layers.scan.inputs import ScanInputs

PACKAGE = "mamba_ssm"
EXTENSION = "selective_scan_cuda"
INTERFACE = f"{PACKAGE}.ops.selective_scan_interface"


@functools.lru_cache(maxsize=1)
def probe() -> tuple[Callable[..., tuple[Tensor, Tensor]] | None, str]:
    """The package's function or None, and the reason in words."""
    try:
        importlib.import_module(EXTENSION)
    except Exception as error:  # a broken build fails in many ways; none of them may end a training
        if not (isinstance(error, ModuleNotFoundError) and error.name == EXTENSION):
            return None, f"mamba-ssm's CUDA extension is broken: {_one_line(error)}"
        if installed():
            return None, f"mamba-ssm is installed without its CUDA extension {EXTENSION}"
        return None, "mamba-ssm is not installed (pip install mamba-ssm)"
    try:
        return importlib.import_module(INTERFACE).selective_scan_fn, "mamba-ssm's CUDA kernel"
    except Exception as error:
        return None, f"mamba-ssm is broken: {_one_line(error)}"


def installed() -> bool:
    """Whether the package or its extension is there, in whatever state."""
    return any(importlib.util.find_spec(name) is not None for name in (PACKAGE, EXTENSION))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the states after the last step (B, N, D), differentiable."""
    function, reason = probe()
    if function is None:
        raise RuntimeError(reason)

    def swap(x: Tensor | None) -> Tensor | None:
        """Time innermost, in order of the run."""
        if x is None:
            return None
        return (x.flip(1) if inputs.reverse else x).transpose(1, 2).contiguous()

    y, last = function(
        swap(inputs.u),
        swap(inputs.dt),
        inputs.A.t().contiguous(),
        swap(inputs.B),
        swap(inputs.C),
        inputs.D,
        swap(inputs.z),
        inputs.dt_bias,
        inputs.dt_softplus,
        True,
    )
    y = y.transpose(1, 2)
    return y.flip(1) if inputs.reverse else y, last.transpose(1, 2)
