"""The block that S4M repeats: scales down, S4 on the coarsest, local attention up (section 3).

Legend: B batch, L frames, O width of the repeated signal, H hidden width, R scales.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from espnet2_sepx.layers.kernels import linear
from espnet2_sepx.layers.multirate import DepthwiseConv, FrameNorm, Memory, Rates
from espnet2_sepx.layers.s4 import S4, Spectrum


class Linear(nn.Linear):
    """``nn.Linear`` by the fastest route of this machine."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Plan:
    """What all repeats of the block share for inputs of one length."""

    rates: Rates
    spectra: dict[int, Spectrum] = field(default_factory=dict)
    """Of the S4 layer of each scale; empty for a stream, where they pass on states."""


class ResidualS4(nn.Module):
    """x + S4(LN(x)), and with ``ffn`` a feed-forward in the same manner after it.

    Shape: ``(B, L, H) -> (B, L, H)``.
    """

    def __init__(
        self, dim: int, state_dim: int, kernel: str, bidirectional: bool, ffn: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.s4 = S4(dim, state_dim, kernel, bidirectional)
        self.ffn = None
        if ffn:
            self.ffn = nn.Sequential(
                nn.LayerNorm(dim), Linear(dim, 2 * dim), nn.GELU(), Linear(2 * dim, dim)
            )

    def forward(self, x: Tensor, spectrum: Spectrum | None, memory: Memory | None = None) -> Tensor:
        if x.shape[1] == 0:
            return x
        if memory is None:
            y = self.s4(self.norm(x), spectrum)
        else:
            y, state = self.s4.forward_chunk(self.norm(x), memory.take("state"))
            memory.leave("state", state)
        x = x + y
        return x if self.ffn is None else x + self.ffn(x)


class LocalAttention(nn.Module):
    """Coarse features gate and shift fine ones (eq. 9 and 10).

    norm(conv(local)) * stretch(sigmoid(norm(conv(coarse)))) + stretch(norm(conv(coarse))), with
    three depthwise convolutions of their own.

    Shape: ``(B, L, H), (B, L', H) -> (B, L, H)``.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        names = ("local", "gate", "shift")
        self.conv = nn.ModuleDict({name: DepthwiseConv(dim, kernel_size) for name in names})
        self.norm = nn.ModuleDict({name: FrameNorm(dim) for name in names})

    def forward(
        self,
        local: Tensor,
        coarse: Tensor,
        rates: Rates,
        high: int,
        low: int,
        memory: Memory | None = None,
    ) -> Tensor:
        """``high``, ``low``: rates of ``local`` and ``coarse``."""

        def normed(name: str, x: Tensor, rate: int) -> Tensor:
            own = None if memory is None else memory.part(name)
            return self.norm[name](self.conv[name](x, rates, rate, own), rates.causal, own)

        def stretched(name: str, x: Tensor) -> Tensor:
            own = None if memory is None else memory.part(name)
            return rates.stretch(x, low, high, own)

        gate = stretched("gate", normed("gate", coarse, low).sigmoid())
        shift = stretched("shift", normed("shift", coarse, low))
        return torch.addcmul(shift, normed("local", local, high), gate)


class MultiScaleBlock(nn.Module):
    """x + the network of Fig. 1 (A) without its outer convolutions.

    Args:
        dim: O.
        hidden_dim: H.
        num_scales: R; each scale has half the frames of the one before.
        state_dim, kernel, bidirectional: of every S4 layer (see S4).
        mid: "s4", or "none" (no S4 and feed-forward on the coarsest scale: Table 3, system 1).
        decoder_s4: S4 layers on the way up.
        causal: see multirate.py; needs ``bidirectional`` to be false.
        legacy_top_fusion: start on the way up from the second finest scale, as the published code
            does (the coarsest scale then has no influence).

    Shape: ``(B, L, O) -> (B, L, O)``.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_scales: int = 4,
        state_dim: int = 16,
        kernel: str = "dplr",
        bidirectional: bool = True,
        mid: str = "s4",
        decoder_s4: bool = False,
        causal: bool = False,
        legacy_top_fusion: bool = False,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.legacy_top_fusion = legacy_top_fusion
        s4 = (hidden_dim, state_dim, kernel, bidirectional)
        self.proj = Linear(dim, hidden_dim)
        self.proj_norm = FrameNorm(hidden_dim)
        self.proj_act = nn.PReLU()
        self.down = nn.ModuleList(
            DepthwiseConv(hidden_dim, 5, stride=min(2, 1 + scale), bias=True)
            for scale in range(num_scales)
        )
        self.down_norm = nn.ModuleList(FrameNorm(hidden_dim) for _ in range(num_scales))
        self.mid = ResidualS4(*s4, ffn=True) if mid == "s4" else None
        self.fuse = nn.ModuleList(LocalAttention(hidden_dim, 1) for _ in range(num_scales))
        self.up = nn.ModuleList(LocalAttention(hidden_dim, 5) for _ in range(num_scales - 1))
        self.up_s4 = nn.ModuleList(ResidualS4(*s4) for _ in self.up) if decoder_s4 else None
        self.res = Linear(hidden_dim, dim)

    def plan(self, frames: int) -> Plan:
        """For inputs of this length; made once per forward pass, since it holds S4's kernels."""
        rates = Rates(frames, len(self.down), self.causal)
        layers: dict[int, ResidualS4] = {}
        if self.up_s4 is not None:
            layers.update(enumerate(self.up_s4))  # type: ignore[arg-type]
        if self.mid is not None:
            layers[len(self.down) - 1] = self.mid
        return Plan(rates, {s: layer.s4.spectrum(rates.counts[s]) for s, layer in layers.items()})

    def stream_plan(self, frames: int, start: int) -> Plan:
        """For a chunk of a stream, ``start`` frames after its beginning."""
        return Plan(Rates(frames, len(self.down), self.causal, start))

    def forward(self, x: Tensor, plan: Plan, memory: Memory | None = None) -> Tensor:
        def part(name: str) -> Memory | None:
            return None if memory is None else memory.part(name)

        rates, coarsest = plan.rates, len(self.down) - 1
        y = self.proj_act(self.proj_norm(self.proj(x), self.causal, part("proj")))
        scales: list[Tensor] = []
        for scale, (conv, norm) in enumerate(zip(self.down, self.down_norm, strict=True)):
            own = part(f"down{scale}")
            y = norm(conv(y, rates, max(0, scale - 1), own), self.causal, own)
            scales.append(y)
        for scale in range(coarsest):
            y = y + rates.pool(scales[scale], coarsest, scale, part(f"pool{scale}"))
        if self.mid is not None:
            y = self.mid(y, plan.spectra.get(coarsest), part("mid"))

        def fused(scale: int) -> Tensor:
            local = scales[scale]
            return self.fuse[scale](local, y, rates, scale, coarsest, part(f"fuse{scale}"))

        top = min(1, coarsest) if self.legacy_top_fusion else coarsest
        z, z_scale = fused(top), top
        for scale in reversed(range(coarsest)):
            z = self.up[scale](fused(scale), z, rates, scale, z_scale, part(f"up{scale}"))
            z_scale = scale
            if self.up_s4 is not None:
                z = self.up_s4[scale](z, plan.spectra.get(scale), part(f"up_s4{scale}"))
        return x + self.res(z)
