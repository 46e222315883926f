"""Short segments of references and estimates: who speaks, and how well they are separated.

Used by the complexity loss of DSN and by its report. A speaker is active in a segment whose energy
is not too far below their loudest one.

Legend: B batch, N samples, J speakers, Q segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLASSES = ("silence", "single", "overlap")
"""Nobody, one speaker, several; the index is the class."""
ENERGY_FLOOR = 1e-10
"""A segment with less energy is silent, whatever the rest of the reference."""
LOWEST_DB, HIGHEST_DB = -30.0, 60.0


@dataclass(frozen=True)
class Segmenter:
    """Cuts signals into overlapping segments.

    Args:
        size: samples of a segment.
        hop: between segments.
        activity_db: a speaker is active within this range below their loudest segment (negative).
    """

    size: int
    hop: int
    activity_db: float = -40.0

    def __post_init__(self) -> None:
        if not 1 <= self.hop <= self.size:
            raise ValueError(f"hop must lie in 1..size={self.size}, got {self.hop}")
        if self.activity_db >= 0:
            raise ValueError(f"activity_db must be negative, got {self.activity_db}")

    @staticmethod
    def of_ms(
        segment_ms: float, hop_ms: float, sample_rate: int, activity_db: float = -40.0
    ) -> Segmenter:
        """From durations in milliseconds."""
        return Segmenter(
            round(segment_ms * sample_rate / 1000), round(hop_ms * sample_rate / 1000), activity_db
        )

    def count(self, samples: int) -> int:
        """Q for N samples; the last segment may reach behind the end."""
        return max(1, -(-(samples - self.size) // self.hop) + 1)

    def cut(self, x: Tensor) -> Tensor:
        """``(..., N)`` to (..., Q, size), zeros behind the end; at least float32."""
        missing = (self.count(x.shape[-1]) - 1) * self.hop + self.size - x.shape[-1]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return nn.functional.pad(x, (0, max(missing, 0))).unfold(-1, self.size, self.hop)

    def activity(self, references: Sequence[Tensor]) -> Tensor:
        """Who is active in which segment, ``J x (B, N)`` to bool (B, J, Q)."""
        energy = self.cut(torch.stack(list(references), 1)).square().sum(-1)
        threshold = energy.amax(-1, keepdim=True) * 10 ** (self.activity_db / 10)
        return (energy > threshold) & (energy > ENERGY_FLOOR)

    def si_sdr(self, references: Sequence[Tensor], estimates: Sequence[Tensor]) -> Tensor:
        """Scale-invariant SDR of each segment in dB, clamped to -30 .. 60, (B, J, Q).

        Means are not removed.
        """
        reference = self.cut(torch.stack(list(references), 1))
        estimate = self.cut(torch.stack(list(estimates), 1))
        tiny = torch.finfo(reference.dtype).tiny
        power = reference.square().sum(-1, keepdim=True).clamp_min(tiny)
        target = (estimate * reference).sum(-1, keepdim=True) / power * reference
        error = (estimate - target).square().sum(-1).clamp_min(tiny)
        ratio = target.square().sum(-1).clamp_min(tiny) / error
        return (10 * ratio.log10()).clamp(LOWEST_DB, HIGHEST_DB)

    def of_frames(self, frames: int, count: int, kernel: int, stride: int, like: Tensor) -> Tensor:
        """The segment whose centre is nearest to that of each frame, (T,).

        Args:
            frames: T of the encoder.
            count: Q.
            kernel, stride: of the encoder, in samples.
            like: on its device.
        """
        centre = torch.arange(frames, device=like.device) * stride + kernel / 2
        return ((centre - self.size / 2) / self.hop).round().long().clamp(0, count - 1)


def segment_class(activity: Tensor) -> Tensor:
    """Index into ``CLASSES`` of each segment, ``(B, J, Q)`` to (B, Q)."""
    return activity.sum(1).clamp_max(2)


def mean_over_active(score: Tensor, activity: Tensor) -> Tensor:
    """Mean over the active speakers, 0 where there is none: ``(B, J, Q)`` both to (B, Q)."""
    return (score * activity).sum(1) / activity.sum(1).clamp_min(1)
