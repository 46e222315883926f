"""Chunks of a sequence, and back: the segmentation of dual-path networks.

Legend: B batch, T frames, F channels, K chunk size, P = K/2 hop of overlapping chunks, S chunks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD_MODES = ("always", "minimal")
MOMENT_PIECE = 1 << 18
"""Numbers whose moments are taken at a time."""


class Segmentation:
    """Cuts (B, T, F) into (B, S, K, F) and puts it together again.

    Chunks overlap by one half (SepFormer: P zeros in front, P and more behind, every frame lies in
    exactly two chunks) or not at all (zeros behind only). With ``pad_mode`` "always" there is at
    least one zero frame behind: a T that needs none gets a whole chunk (overlapping: a hop or two)
    more, as in SpeechBrain. "minimal" pads as little as possible.

    Args:
        chunk_size: K, even if chunks overlap.
        overlap: 0.5 or 0.
        pad_mode: "always" or "minimal".
    """

    def __init__(self, chunk_size: int, overlap: float = 0.5, pad_mode: str = "always") -> None:
        if overlap not in (0, 0.5):
            raise ValueError(f"overlap must be 0 or 0.5, got {overlap}")
        if chunk_size < 1 or (overlap and chunk_size % 2):
            kind = "even and positive" if overlap else "at least 1"
            raise ValueError(f"chunk_size must be {kind}, got {chunk_size}")
        if pad_mode not in PAD_MODES:
            raise ValueError(f"pad_mode must be one of {PAD_MODES}, got {pad_mode!r}")
        self.chunk_size = chunk_size
        self.overlap = bool(overlap)
        self.pad_mode = pad_mode

    def num_chunks(self, frames: int) -> int:
        """S for T frames."""
        size = self.chunk_size
        if not self.overlap:
            return frames // size + 1 if self.pad_mode == "always" else -(-frames // size)
        hop = size // 2
        if self.pad_mode == "minimal":
            return -(-frames // hop) + 1
        gap = size - (hop + frames) % size
        return (frames + gap) // hop + 1

    def split(self, x: Tensor) -> Tensor:
        """``(B, T, F)`` to ``(B, S, K, F)``, a copy; overlapping chunks share memory.

        Frames behind an item's length must be zero if a padded batch is to equal single items.
        """
        size, frames = self.chunk_size, x.shape[1]
        chunks = self.num_chunks(frames)
        if not self.overlap:
            return F.pad(x, (0, 0, 0, chunks * size - frames)).unflatten(1, (chunks, size))
        hop = size // 2
        padded = F.pad(x, (0, 0, hop, chunks * hop - frames))  # (S + 1) P frames
        return padded.unfold(1, size, hop).transpose(2, 3)

    def merge(self, chunks: Tensor, frames: int) -> Tensor:
        """``(B, S, K, F)`` to ``(B, T, F)``: chunks joined, or overlapping ones added up.

        ``merge(split(x), T)`` is ``x``, twice ``x`` if chunks overlap.
        """
        if not self.overlap:
            return chunks.flatten(1, 2)[:, :frames]
        halves = chunks.unflatten(2, (2, self.chunk_size // 2))  # (B, S, 2, P, F)
        # Between the outer zeros, hop s holds the second half of chunk s and the first of s + 1.
        return (halves[:, :-1, 1] + halves[:, 1:, 0]).flatten(1, 2)[:, :frames]


class GlobalNorm(nn.Module):
    """Zero mean, unit variance over all positions and channels of a row, affine per channel.

    Group normalisation with one group, channels last. Statistics in at least float32.

    Shape: ``(R, n, F) -> (R, n, F)``.

    Args:
        dim: F.
        eps: added to the (biased) variance.
    """

    def __init__(self, dim: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor, lengths: tuple[int, ...] | None = None) -> Tensor:
        """``lengths``: valid positions per row; what lies behind does not count. None: all."""
        if lengths is None:
            y = self._standardise(x)
        else:
            full = x.shape[1]
            rows = (self._standardise(row[None, :n]) for row, n in zip(x, lengths, strict=True))
            y = torch.cat([F.pad(row, (0, 0, 0, full - row.shape[1])) for row in rows])
        return torch.addcmul(self.bias.to(y.dtype), y, self.weight.to(y.dtype))

    def add_to(self, x: Tensor, y: Tensor, lengths: tuple[int, ...] | None = None) -> None:
        """x += norm(y) in place on contiguous ``(R, n, F)``, outside of any graph.

        Behind ``lengths`` x stays as it is.
        """
        for index, (target, row) in enumerate(zip(x, y, strict=True)):
            n = row.shape[0] if lengths is None else lengths[index]
            mean, variance = _moments(row[:n])
            scale = self.weight * (variance + self.eps) ** -0.5
            target[:n].addcmul_(row[:n], scale).add_(self.bias - mean * scale)

    def _standardise(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return F.layer_norm(flat, flat.shape[1:], eps=self.eps).view(x.shape)


def _moments(x: Tensor) -> tuple[float, float]:
    """Mean and (biased) variance of a contiguous tensor, at least float32, without a copy of it.

    Of pieces by layer norm, PyTorch's fastest careful way, joined after Chan et al.
    """
    eps = torch.finfo(x.dtype).tiny
    count, mean, squares = 0, 0.0, 0.0  # squares: of differences from the mean, summed
    for piece in x.reshape(-1).split(MOMENT_PIECE):
        stats = torch.native_layer_norm(piece, piece.shape, None, None, eps)[1:]
        new_mean, inverse = (stat.item() for stat in stats)
        new, both = piece.numel(), count + piece.numel()
        difference = new_mean - mean
        squares += new * inverse**-2 + difference**2 * count * new / both
        mean += difference * new / both
        count = both
    return mean, squares / count
