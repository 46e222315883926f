"""Spectra as separators get them from ESPnet's ``stft`` encoder: their kinds, and their level.

Legend: B batch, T frames, F bins.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_complex.tensor import ComplexTensor

LEVEL_FLOOR = 1e-8


def as_real(x: Tensor) -> tuple[Tensor, bool]:
    """(B, T, F, 2) real view of the input, and whether that is ESPnet's ``ComplexTensor``."""
    if isinstance(x, ComplexTensor):
        return torch.stack((x.real, x.imag), -1), True
    if torch.is_complex(x):
        return torch.view_as_real(x), False
    if x.dim() != 4 or x.shape[-1] != 2:
        raise ValueError(
            f"input must be complex (B, T, F) or real (B, T, F, 2), got {tuple(x.shape)}"
        )
    return x, False


def level_of(energy: Tensor, frames: Tensor | int, bins: int) -> Tensor:
    """Standard deviation of the waveform behind spectra whose squares add up to ``energy``.

    A frame of F bins holds n_fft = 2 (F - 1) samples under a Hann window, whose squares add up to
    3/8 n_fft; so much above the waveform's power lies that of a bin (Parseval). 0 for silence, with
    a finite gradient.
    """
    power = energy / (frames * bins * 0.75 * max(bins - 1, 1))
    return power.clamp_min(torch.finfo(power.dtype).tiny).sqrt().mul(power > 0)
