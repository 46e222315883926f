"""Normalisation that knows which frames are real (section 6 of the model's specification).

Legend: B batch, T frames, K bands, N channels, C any channel count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Padding:
    """Which frames of a padded batch are real. ``None`` in its place means: all of them."""

    lengths: tuple[int, ...]
    """Valid frames per item."""
    valid: Tensor
    """``(B, T)`` bool, true on valid frames."""

    @staticmethod
    def from_lengths(lengths: Tensor, num_frames: int) -> Padding | None:
        """Build from ESPnet's ``ilens``; equal full lengths need no mask and give ``None``."""
        frames = tuple(int(n) for n in lengths.tolist())
        if not all(1 <= n <= num_frames for n in frames):
            raise ValueError(f"ilens must lie in 1..{num_frames} (the padded length), got {frames}")
        if min(frames) == num_frames:
            return None
        index = torch.arange(num_frames, device=lengths.device)
        return Padding(frames, index[None, :] < lengths[:, None])

    def like(self, x: Tensor) -> Tensor:
        """The mask in the dtype of ``x (B, T, ...)``, with trailing ones to broadcast."""
        return self.valid.to(x.dtype).reshape(self.valid.shape + (1,) * (x.dim() - 2))


def standardise(x: Tensor, dims: tuple[int, ...], padding: Padding | None, eps: float) -> Tensor:
    """Zero mean, unit variance of ``x (B, T, ...)`` over ``dims`` (time among them).

    Padded frames do not enter the statistics; their outputs are zero.
    """
    if padding is None:
        centred = x - x.mean(dims, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)
    mask = padding.like(x)
    others = 1
    for dim in dims:
        others *= 1 if dim == 1 else x.shape[dim]
    count = mask.sum(1, keepdim=True) * others
    centred = (x - (x * mask).sum(dims, keepdim=True) / count) * mask
    return centred * torch.rsqrt(centred.square().sum(dims, keepdim=True) / count + eps)


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all tokens of ``(B, T, K, C)`` except those of padded frames."""

    def forward(self, x: Tensor, padding: Padding | None = None) -> Tensor:  # type: ignore[override]
        if padding is None or not self.training:
            return super().forward(x.reshape(-1, x.shape[-1])).view(x.shape)
        valid = padding.valid
        y = torch.zeros_like(x)
        y[valid] = super().forward(x[valid].reshape(-1, x.shape[-1])).view(-1, *x.shape[2:])
        return y
