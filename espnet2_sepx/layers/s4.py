"""S4: a linear state space per channel as a convolution, as a recurrence, or in chunks.

Training and offline inference convolve by FFT. The kernels depend on parameters and length only;
their spectrum is made once per forward pass (``spectrum``) and may be used by many calls. Streams
pass the state from chunk to chunk; a chunk of one frame is the step-by-step recurrence.

Legend: B batch, L frames, H channels, S state size, N points of the FFT.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_sepx.layers.kernels import linear
from espnet2_sepx.layers.state_space import STATE_SPACES

BLOCK_POINTS = 2**18
"""Channels times points of one block of transforms on a CPU: 1 MB, and no more for long inputs."""
MIN_CHANNELS = 16


@dataclass(frozen=True)
class Spectrum:
    """Fourier transform of a layer's kernels for inputs of one length."""

    values: Tensor
    """(H, N/2 + 1) complex."""
    points: int
    """N."""


class S4(nn.Module):
    """GLU(W GELU(K * u + D u) + b), the S4 layer of S4M (section 2 and 3.1; eq. 3 to 8).

    Args:
        dim: H.
        state_dim: S, even.
        kernel: "dplr" (diagonal plus low rank, as in the paper) or "diag" (S4D).
        bidirectional: two-sided kernel; false makes the layer causal.

    Shape: ``(B, L, H) -> (B, L, H)``.
    """

    def __init__(
        self, dim: int, state_dim: int = 16, kernel: str = "dplr", bidirectional: bool = True
    ) -> None:
        super().__init__()
        if kernel not in STATE_SPACES:
            raise ValueError(f"kernel must be one of {tuple(STATE_SPACES)}, got {kernel!r}")
        self.bidirectional = bidirectional
        self.space = STATE_SPACES[kernel](dim, state_dim, bidirectional)
        self.D = nn.Parameter(torch.randn(1, dim))
        self.out = nn.Linear(dim, 2 * dim)
        for parameter in (self.D, *self.space.parameters()):
            parameter._optim = {"weight_decay": 0.0}  # type: ignore[attr-defined]  # of ESPnet's
            # optim_conf `exclude_weight_decay`: decay would pull the dynamics towards others

    def forward(self, u: Tensor, spectrum: Spectrum | None = None) -> Tensor:
        """``spectrum``: of this length, made anew by default."""
        if spectrum is None:
            spectrum = self.spectrum(u.shape[1])
        if torch.is_grad_enabled() or u.device.type != "cpu":
            y = convolve(u.transpose(1, 2).to(self.space.dtype), spectrum)
            return self._mix(F.gelu(y.to(u.dtype)).transpose(1, 2))
        return self._mix(self._in_blocks(u, spectrum))

    def spectrum(self, length: int) -> Spectrum:
        """Kernels of both directions around lag 0 of a circular convolution, D added at lag 0."""
        kernel = self.space.kernel(length)
        causal = torch.cat((kernel[0, :, :1] + self._skip()[:, None], kernel[0, :, 1:]), -1)
        points = fft_size(2 * length - 1)
        padding = kernel.new_zeros(kernel.shape[1], points - 2 * length + 1)
        past = kernel[1, :, : length - 1].flip(-1) if self.bidirectional else None
        if past is None:
            past = kernel.new_zeros(kernel.shape[1], length - 1)
        return Spectrum(torch.fft.rfft(torch.cat((causal, padding, past), -1)), points)

    def forward_chunk(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Continue a causal convolution.

        Args:
            u: the next frames (B, n, H), at least one.
            state: (B, H, S) after the frames before; None at the start.

        Returns:
            outputs (B, n, H) and the state after them.

        Raises:
            ValueError: the layer is bidirectional.
        """
        if self.bidirectional:
            raise ValueError("forward_chunk needs bidirectional=False: it knows the past only")
        u_BHL, steps = u.transpose(1, 2).to(self.space.dtype), u.shape[1]
        maps = self.space.passing(steps)
        if state is None:
            state = maps.rows.new_zeros(*u_BHL.shape[:2], maps.rows.shape[-1])
        points = fft_size(2 * steps - 1)
        kernel = torch.fft.rfft(maps.kernel, n=points)
        y = convolve(u_BHL, Spectrum(kernel, points)) + self._skip()[:, None] * u_BHL
        with torch.autocast(u.device.type, enabled=False):
            y = y + (maps.rows @ state[..., None])[..., 0]
            entered = (maps.columns @ u_BHL[..., None])[..., 0]
            state = (maps.transition @ state[..., None])[..., 0] + entered
        return self._mix(F.gelu(y.to(u.dtype)).transpose(1, 2)), state

    def _skip(self) -> Tensor:
        return self.D[0].to(self.space.dtype)

    def _in_blocks(self, u: Tensor, spectrum: Spectrum) -> Tensor:
        """GELU of the convolution of ``u (B, L, H)``, for blocks of channels that fit the cache."""
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        size = max(MIN_CHANNELS, BLOCK_POINTS // spectrum.points)
        for start in range(0, u.shape[2], size):
            block = slice(start, start + size)
            channels = u[..., block].transpose(1, 2).to(self.space.dtype)
            z = convolve(channels, Spectrum(spectrum.values[block], spectrum.points))
            y[..., block] = F.gelu(z.to(u.dtype)).transpose(1, 2)
        return y

    def _mix(self, y: Tensor) -> Tensor:
        return F.glu(linear(y, self.out.weight, self.out.bias), -1)


def convolve(u: Tensor, spectrum: Spectrum) -> Tensor:
    """Convolution of ``u (B, H, L)`` along L with kernels given by their spectrum."""
    product = torch.fft.rfft(u, n=spectrum.points) * spectrum.values
    return torch.fft.irfft(product, n=spectrum.points)[..., : u.shape[-1]]


def fft_size(at_least: int) -> int:
    """The smallest even number from ``at_least`` on without prime factors above 5.

    Such sizes are fast to transform, and closer than a power of two, up to twice as many points.
    """
    best = 2 ** max(1, (at_least - 1).bit_length())
    power_of_5 = 1
    while power_of_5 < best:
        product = power_of_5
        while product < best:
            quotient = -(-at_least // product)
            best = min(best, product * 2 ** max(1, (quotient - 1).bit_length()))
            product *= 3
        power_of_5 *= 5
    return best
