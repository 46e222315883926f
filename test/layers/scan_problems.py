"""Random scans for the tests of the selective scan."""

from __future__ import annotations

import pytest
import torch

from espnet2_sepx.layers.scan import compiled, selective_scan
from espnet2_sepx.layers.scan.inputs import ScanInputs


def problem(batch, length, width, state, full=True, reverse=False, seed=0) -> ScanInputs:
    """float64; step sizes up to about 4."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    dt = normal(batch, length, width)
    return ScanInputs(
        u=normal(batch, length, width),
        dt=2 * dt - 1 if full else dt.abs(),
        A=-torch.exp(normal(state, width)) - 1e-3,
        B=normal(batch, length, state),
        C=normal(batch, length, state),
        D=normal(width) if full else None,
        z=normal(batch, length, width) if full else None,
        dt_bias=normal(width) if full else None,
        h0=normal(batch, state, width) if full else None,
        dt_softplus=full,
        reverse=reverse,
    )


def run(inputs: ScanInputs, backend: str, **options):
    values = dict(zip(inputs.TENSORS, inputs.tensors(), strict=True))
    return selective_scan(
        **values,
        dt_softplus=inputs.dt_softplus,
        reverse=inputs.reverse,
        backend=backend,
        return_state=True,
        **options,
    )


needs_kernel = pytest.mark.skipif(compiled.probe()[0] is None, reason=compiled.probe()[1])
