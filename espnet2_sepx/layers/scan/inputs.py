"""What a selective scan reads, and what it computes, in words of tensors.

    dt_t = softplus(dt_t + dt_bias)              (each part if wanted)
    h_t  = exp(dt_t A) h_(t-1) + dt_t B_t u_t    per channel and state
    y_t  = (C_t . h_t + D u_t) silu(z_t)

With ``reverse`` t runs from the last step to the first. Channels are the innermost dimension
everywhere (mamba-ssm puts time there): neighbouring channels are what a processor computes at once.

Legend: B sequences, L steps, D channels, N states per channel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScanInputs:
    """Tensors in one dtype on one device; see the module for their meaning."""

    u: Tensor
    """(B, L, D)"""
    dt: Tensor
    """(B, L, D)"""
    A: Tensor
    """(N, D)"""
    B: Tensor
    """(B, L, N)"""
    C: Tensor
    """(B, L, N)"""
    D: Tensor | None = None
    """(D)"""
    z: Tensor | None = None
    """(B, L, D)"""
    dt_bias: Tensor | None = None
    """(D)"""
    h0: Tensor | None = None
    """(B, N, D), states before the first step; zero if not given"""
    dt_softplus: bool = False
    reverse: bool = False

    TENSORS = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "h0")

    def check(self) -> None:
        """``ValueError`` about the first tensor whose shape does not fit."""
        if self.u.dim() != 3 or self.A.dim() != 2:
            raise ValueError(
                f"u must be (batch, length, width) and A (state, width), "
                f"got {tuple(self.u.shape)} and {tuple(self.A.shape)}"
            )
        batch, length, width = self.u.shape
        state = self.A.shape[0]
        if length < 1:
            raise ValueError("u must have at least one step, got length 0")
        expected = {
            "dt": (batch, length, width),
            "A": (state, width),
            "B": (batch, length, state),
            "C": (batch, length, state),
            "D": (width,),
            "z": (batch, length, width),
            "dt_bias": (width,),
            "h0": (batch, state, width),
        }
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")

    def tensors(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, name) for name in self.TENSORS)

    def with_tensors(self, tensors: tuple[Tensor | None, ...]) -> ScanInputs:
        """The same scan of other tensors, in the order of ``TENSORS``."""
        values = dict(zip(self.TENSORS, tensors, strict=True))
        return ScanInputs(**values, dt_softplus=self.dt_softplus, reverse=self.reverse)  # type: ignore[arg-type]

    def to(self, dtype: torch.dtype) -> ScanInputs:
        return self.with_tensors(tuple(t if t is None else t.to(dtype) for t in self.tensors()))

    def needs_grad(self) -> bool:
        return torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in self.tensors()
        )

    def first_state(self) -> Tensor:
        """A new tensor (B, N, D) with the states before the first step."""
        if self.h0 is not None:
            return self.h0.clone(memory_format=torch.contiguous_format)
        return self.u.new_zeros(self.u.shape[0], *self.A.shape)


@dataclass
class ScanGrads:
    """Gradients with respect to the tensors of the same names; None where there was none."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    h0: Tensor | None

    def tensors(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))
