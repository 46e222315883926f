"""Mamba (selective state space) blocks, in one direction or both (Li et al., section III-C).

Parameters carry the names of mamba-ssm's ``Mamba`` module, so weights interchange with it.

Legend: B sequences, L steps, C model width, E inner width, N states per channel, R rank of the step
size, K taps of the convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espnet2_sepx.layers.cache import EvalCache
from espnet2_sepx.layers.kernels import linear
from espnet2_sepx.layers.scan import causal_conv_silu, selective_scan

DT_RANGE = (1e-3, 1e-1)
"""Step sizes at initialisation, log-uniform."""
DT_FLOOR = 1e-4


@dataclass
class MambaState:
    """What one mixer remembers of the steps before."""

    taps: Tensor
    """(B, K - 1, E), inputs of the convolution"""
    scan: Tensor
    """(B, N, E)"""


class MambaMixer(EvalCache):
    """Selective state space mixer, mamba-ssm's ``Mamba``.

    Shape: ``(B, L, C) -> (B, L, C)``.

    Args:
        dim: C.
        d_state: N.
        d_conv: K.
        expand: E / C.
        backend: of the scan, see ``espnet2_sepx.layers.scan.backends``.
    """

    def __init__(
        self, dim: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, backend: str = "auto"
    ) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.d_state, self.dt_rank, self.backend = d_state, rank, backend
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self._init_step_size()

    @torch.no_grad()
    def _init_step_size(self) -> None:
        """softplus(bias) is log-uniform over ``DT_RANGE``."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high = (math.log(bound) for bound in DT_RANGE)
        step = torch.empty_like(self.dt_proj.bias).uniform_(low, high).exp_().clamp_(min=DT_FLOOR)
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus^-1

    def _decay(self) -> Tensor:
        """A (N, E), in float32 at least."""
        wide = torch.promote_types(self.A_log.dtype, torch.float32)
        return -torch.exp(self.A_log.t().to(wide)).contiguous()

    def forward(self, x: Tensor, reverse: bool = False) -> Tensor:
        """``reverse``: from the last step to the first."""
        return self._mix(x, reverse, None)[0]

    def forward_streaming(self, x: Tensor, state: MambaState | None) -> tuple[Tensor, MambaState]:
        """Continue after the steps that ``state`` remembers (None: none)."""
        if state is None:
            inner = self.D.shape[0]
            state = MambaState(
                x.new_zeros(x.shape[0], self.conv1d.kernel_size[0] - 1, inner),
                x.new_zeros(x.shape[0], self.d_state, inner),
            )
        return self._mix(x, False, state)

    def _mix(self, x: Tensor, reverse: bool, state: MambaState | None) -> tuple:
        u, z = linear(x, self.in_proj.weight).chunk(2, -1)
        taps = None if state is None else state.taps
        convolved = causal_conv_silu(
            u,
            self.cached("taps", lambda: self.conv1d.weight[:, 0].t().contiguous()),
            self.conv1d.bias,  # type: ignore[arg-type]
            before=taps,
            reverse=reverse,
            backend=self.backend,
        )
        projected = linear(convolved, self.x_proj.weight)
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], -1)
        y, last = selective_scan(
            convolved,
            linear(dt, self.dt_proj.weight),
            self.cached("A", self._decay),
            B,
            C,
            self.D,
            z=z,
            dt_bias=self.dt_proj.bias,
            dt_softplus=True,
            h0=None if state is None else state.scan,
            reverse=reverse,
            return_state=True,
            backend=self.backend,
        )
        y = linear(y, self.out_proj.weight)
        if taps is None:
            return y, None
        return y, MambaState(torch.cat((taps, u), 1)[:, u.shape[1] :], last)


class RMSNorm(nn.Module):
    """x / rms(x) times a weight, over the last dimension; in float32 at least.

    Shape: ``(..., C) -> (..., C)``.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class MambaBlock(nn.Module):
    """x + Mamba(RMSNorm(x)). Shape: ``(B, L, C) -> (B, L, C)``."""

    def __init__(self, dim: int, eps: float = 1e-5, **options: object) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, eps)
        self.mixer = MambaMixer(dim, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor, reverse: bool = False) -> Tensor:
        return x + self.mixer(self.norm(x), reverse)

    def forward_streaming(self, x: Tensor, state: MambaState | None) -> tuple[Tensor, MambaState]:
        y, state = self.mixer.forward_streaming(self.norm(x), state)
        return x + y, state


class MambaLayer(nn.Module):
    """Blocks that run forwards and, if ``bidirectional``, others that run backwards (eq. 4).

    Shape: ``(B, L, C) -> (B, L, 2C)``, or ``(B, L, C)`` in one direction. The "linear layer" that
    the paper puts behind is the transposed convolution of the path around this layer.

    Args:
        dim: C.
        num_layers: residual blocks per direction.
        bidirectional: both directions, with weights of their own.
        options: of ``MambaMixer``.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int = 1,
        bidirectional: bool = True,
        eps: float = 1e-5,
        **options: object,
    ) -> None:
        super().__init__()

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(MambaBlock(dim, eps, **options) for _ in range(num_layers))

        self.dim = dim
        self.forward_blocks = blocks()
        self.inner: int = self.forward_blocks[0].mixer.D.shape[0]  # type: ignore
        self.backward_blocks = blocks() if bidirectional else None

    @property
    def output_size(self) -> int:
        directions = 1 if self.backward_blocks is None else 2
        return directions * self.dim

    @property
    def widest(self) -> int:
        """Numbers per step in the largest of its tensors."""
        return 2 * self.inner

    def forward(self, x: Tensor) -> Tensor:
        forward = x
        for block in self.forward_blocks:
            forward = block(forward)
        if self.backward_blocks is None:
            return forward
        backward = x
        for block in self.backward_blocks:
            backward = block(backward, reverse=True)
        return torch.cat((forward, backward), -1)

    def forward_streaming(
        self, x: Tensor, states: list[MambaState] | None
    ) -> tuple[Tensor, list[MambaState]]:
        """One direction only: continue after the steps that ``states`` remember."""
        if self.backward_blocks is not None:
            raise ValueError("forward_streaming needs bidirectional=False, got True")
        new = []
        for index, block in enumerate(self.forward_blocks):
            assert isinstance(block, MambaBlock)
            x, state = block.forward_streaming(x, None if states is None else states[index])
            new.append(state)
        return x, new
