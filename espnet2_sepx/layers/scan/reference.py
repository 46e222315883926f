"""The scan as its definition reads: one step after the other, differentiated by autograd.

For tests and for reading. Memory in training grows with (B, L, N, D).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet2_sepx.layers.scan.inputs import ScanInputs


def scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the states after the last step (B, N, D)."""
    dt = inputs.dt if inputs.dt_bias is None else inputs.dt + inputs.dt_bias
    dt = F.softplus(dt) if inputs.dt_softplus else dt
    length = inputs.u.shape[1]
    steps = range(length - 1, -1, -1) if inputs.reverse else range(length)
    h = inputs.first_state()
    outputs = [inputs.u[:, 0]] * length
    for t in steps:
        dt_t = dt[:, t, None, :]  # (B, 1, D)
        input_t = (dt[:, t] * inputs.u[:, t])[:, None, :] * inputs.B[:, t, :, None]  # (B, N, D)
        h = torch.exp(dt_t * inputs.A) * h + input_t
        outputs[t] = torch.einsum("bn,bnd->bd", inputs.C[:, t], h)
    y = torch.stack(outputs, 1)
    if inputs.D is not None:
        y = y + inputs.D * inputs.u
    if inputs.z is not None:
        y = y * F.silu(inputs.z)
    return y, h
