"""Mel band split and per-band mask decoder (TF-MoE, section 2.1; after the band-split RNN).

All bands are computed together: the ragged per-band layers are stored as flat parameters, which
keeps the number of tensors small and the number of kernel launches independent of K.

Legend: B batch, T frames, F bins, K bands, w bins of one band, W sum of all w, N channels,
S speakers, H = 4N hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_sepx.layers.cache import EvalCache
from espnet2_sepx.layers.norms import Padding, standardise

Bands = tuple[tuple[int, int], ...]
"""Inclusive (first bin, last bin) of each band."""


def _hz_to_mel(hz: float) -> float:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    if hz < 1000.0:
        return 3.0 * hz / 200.0
    return 15.0 + 27.0 * math.log(hz / 1000.0) / math.log(6.4)


def _mel_to_hz(mel: Tensor) -> Tensor:
    return torch.where(
        mel < 15.0, mel * (200.0 / 3.0), 1000.0 * torch.exp((mel - 15.0) * (math.log(6.4) / 27.0))
    )


def mel_bands(num_bins: int, num_bands: int, sample_rate: int) -> Bands:
    """Supports of the triangular Slaney mel filters, the outer two opened to DC and Nyquist.

    Args:
        num_bins: F, the FFT has 2(F-1) points.
        num_bands: K.
        sample_rate: in Hz.

    Returns:
        K overlapping (first, last) bin pairs that cover every bin.
    """
    if num_bands < 1:
        raise ValueError(f"num_bands must be at least 1, got {num_bands}")
    if sample_rate <= 0:
        raise ValueError(f"sample_rate must be positive (Hz), got {sample_rate}")
    nyquist = sample_rate / 2
    mels = torch.linspace(0.0, _hz_to_mel(nyquist), num_bands + 2, dtype=torch.float64)
    edges = _mel_to_hz(mels)
    bins = torch.linspace(0.0, nyquist, num_bins, dtype=torch.float64)
    inside = (bins > edges[:-2, None]) & (bins < edges[2:, None])
    inside[0, 0] = inside[-1, -1] = True
    bands = []
    for index, row in enumerate(inside):
        members = row.nonzero().flatten().tolist()
        if not members:
            raise ValueError(
                f"num_bands={num_bands} leaves mel band {index} without a bin at {num_bins} bins "
                f"and {sample_rate} Hz; use fewer bands or a longer FFT"
            )
        bands.append((members[0], members[-1]))
    return check_bands(bands, num_bins)


def check_bands(bands: Sequence[Sequence[int]], num_bins: int) -> Bands:
    """Inclusive (first, last) pairs, each within the spectrum, that together cover every bin."""
    pairs = []
    covered = [False] * num_bins
    for band in bands:
        if len(band) != 2 or not 0 <= int(band[0]) <= int(band[1]) < num_bins:
            raise ValueError(
                f"bands must be [first, last] bin pairs within 0..{num_bins - 1}, got {list(band)}"
            )
        first, last = int(band[0]), int(band[1])
        pairs.append((first, last))
        covered[first : last + 1] = [True] * (last - first + 1)
    if not all(covered):
        raise ValueError(
            f"bands must cover all bins 0..{num_bins - 1}, bin {covered.index(False)} is in no band"
        )
    return tuple(pairs)


def _linear_bound(fan_in: int) -> float:
    """The uniform bound of ``nn.Linear``, for layers that are stored stacked."""
    return 1.0 / math.sqrt(fan_in)


class BandSplit(EvalCache):
    """Each band: normalise its real and imaginary bins over channels and time, project to N.

    The layers ``GroupNorm(1, 2w)`` and ``Linear(2w, N)`` of all bands lie one after the other in
    flat parameters; the computation pads every band to the widest.

    Shape: ``(B, T, F, 2) -> (B, T, K, N)``.

    Args:
        bands: inclusive bin ranges.
        num_channels: N.
    """

    slot_bin: Tensor
    slot_row: Tensor
    used: Tensor

    def __init__(self, bands: Bands, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        widths = [last - first + 1 for first, last in bands]
        rows, slots = 2 * sum(widths), 2 * max(widths)
        self.norm_weight = nn.Parameter(torch.ones(rows))
        self.norm_bias = nn.Parameter(torch.zeros(rows))
        self.weight = nn.Parameter(torch.empty(rows, num_channels))
        self.bias = nn.Parameter(torch.empty(len(bands), num_channels))
        # Per band and slot: index into the flattened (F, 2) bins and into the parameter rows. Slots
        # that a narrow band leaves unused point at an appended zero.
        num_bins = max(last for _, last in bands) + 1
        slot_bin = torch.full((len(bands), slots), 2 * num_bins, dtype=torch.long)
        slot_row = torch.full((len(bands), slots), rows, dtype=torch.long)
        start = 0
        for band, (first, width) in enumerate(zip((b[0] for b in bands), widths, strict=True)):
            bound = _linear_bound(2 * width)
            nn.init.uniform_(self.weight.data[start : start + 2 * width], -bound, bound)
            nn.init.uniform_(self.bias.data[band], -bound, bound)
            slot_bin[band, : 2 * width] = torch.arange(2 * first, 2 * (first + width))
            slot_row[band, : 2 * width] = torch.arange(start, start + 2 * width)
            start += 2 * width
        self.register_buffer("slot_bin", slot_bin, persistent=False)
        self.register_buffer("slot_row", slot_row, persistent=False)
        self.register_buffer("used", (slot_row < rows).to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor, padding: Padding | None = None) -> Tensor:
        batch, frames = x.shape[:2]
        num_bands, slots = self.slot_bin.shape
        flat = F.pad(x.reshape(batch, frames, -1), (0, 1))
        feature = flat[:, :, self.slot_bin.flatten()].view(batch, frames, num_bands, slots)
        if padding is None:
            count = self.used.sum(1) * frames  # (K,)
        else:
            feature = feature * padding.like(feature)
            count = self.used.sum(1) * padding.valid.sum(1)[:, None]  # (B, K)
        mean = feature.sum((1, 3)) / count
        centred = (feature - mean[:, None, :, None]) * self.used
        if padding is not None:
            centred = centred * padding.like(feature)
        scale = torch.rsqrt(centred.square().sum((1, 3)) / count + self.eps)  # (B, K)
        centred = centred * scale[:, None, :, None]
        weight, bias = self.cached("weights", self._padded_weights)
        tokens = centred.permute(2, 0, 1, 3).reshape(num_bands, batch * frames, slots)
        z = torch.baddbmm(bias, tokens, weight)  # (K, B T, N)
        return z.view(num_bands, batch, frames, -1).permute(1, 2, 0, 3).contiguous()

    def _padded_weights(self) -> tuple[Tensor, Tensor]:
        """Norm's affine part folded into the projection: ``(K, slots, N)`` and ``(K, 1, N)``."""
        scaled = F.pad(self.weight * self.norm_weight[:, None], (0, 0, 0, 1))
        shift = F.pad(self.weight * self.norm_bias[:, None], (0, 0, 0, 1))
        return scaled[self.slot_row], (self.bias + shift[self.slot_row].sum(1))[:, None]


class MaskDecoder(EvalCache):
    """Each band: complex masks and complex residuals of all speakers; overlapping bands add up.

    Twice (mask, residual) and per band: ``GroupNorm(1, N)`` over channels and time,
    ``Linear(N, 4N)``, tanh, ``Linear(4N, 4wS)``, GLU. Bands are stored in order of their width, so
    that bands of equal width form one batched product; ``order`` holds that permutation.

    Shape: ``(B, T, K, N) -> (S, F, 2, B, T)`` twice: masks, residuals.

    Args:
        bands: inclusive bin ranges.
        num_channels: N.
        num_spk: S.
    """

    order: Tensor
    sources: Tensor

    def __init__(
        self, bands: Bands, num_channels: int, num_spk: int, expansion: int = 4, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.eps = eps
        self.num_spk = num_spk
        self.num_bins = max(last for _, last in bands) + 1
        hidden = expansion * num_channels
        widths = [last - first + 1 for first, last in bands]
        order = sorted(range(len(bands)), key=lambda band: widths[band])
        self.groups = [(width, widths.count(width)) for width in sorted(set(widths))]
        rows = 4 * num_spk * sum(widths)
        self.norm_weight = nn.Parameter(torch.ones(2, len(bands), num_channels))
        self.norm_bias = nn.Parameter(torch.zeros(2, len(bands), num_channels))
        self.weight1 = nn.Parameter(torch.empty(2, len(bands), num_channels, hidden))
        self.bias1 = nn.Parameter(torch.empty(2, len(bands), hidden))
        self.weight2 = nn.Parameter(torch.empty(2, rows, hidden))
        self.bias2 = nn.Parameter(torch.empty(2, rows))
        for tensor, fan_in in (
            (self.weight1, num_channels),
            (self.bias1, num_channels),
            (self.weight2, hidden),
            (self.bias2, hidden),
        ):
            nn.init.uniform_(tensor, -_linear_bound(fan_in), _linear_bound(fan_in))
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer(
            "sources", self._contributions([bands[band] for band in order]), persistent=False
        )

    def _contributions(self, bands: list[tuple[int, int]]) -> Tensor:
        """Rows of the band outputs that add up in each output row, ``(most bands per bin, S F 2)``.

        Band outputs come as rows (band, S, w, 2), with a row of zeros after the last one.
        """
        rows: list[list[int]] = [[] for _ in range(self.num_spk * self.num_bins * 2)]
        row = 0
        for first, last in bands:
            for spk in range(self.num_spk):
                for part in range(2 * first, 2 * (last + 1)):
                    rows[spk * self.num_bins * 2 + part].append(row)
                    row += 1
        depth = max(len(sources) for sources in rows)
        return torch.tensor([sources + [row] * (depth - len(sources)) for sources in rows]).t()

    def forward(self, x: Tensor, padding: Padding | None = None) -> tuple[Tensor, Tensor]:
        batch, frames, num_bands, _ = x.shape
        x = standardise(x, (1, 3), padding, self.eps)
        tokens = x.permute(2, 0, 1, 3)[self.order].reshape(num_bands, batch * frames, -1)
        mask, residual = (self._decode(tokens, part) for part in range(2))
        shape = (self.num_spk, self.num_bins, 2, batch, frames)
        return mask.view(shape), residual.view(shape)

    def _decode(self, tokens: Tensor, part: int) -> Tensor:
        """``(K, B T, N) -> (S F 2, B T)`` for masks (part 0) or residuals (part 1)."""
        weight1, bias1, weight2, bias2 = (
            tensor[part] for tensor in self.cached("weights", self._folded_weights)
        )
        hidden = torch.baddbmm(bias1, tokens, weight1).sigmoid_()  # (K, B T, H)
        group_rows = [4 * width * self.num_spk * count for width, count in self.groups]
        outputs = []
        for (_, count), h, weight, bias in zip(
            self.groups,
            hidden.split([count for _, count in self.groups]),
            weight2.split(group_rows),
            bias2.split(group_rows),
            strict=True,
        ):
            y = torch.baddbmm(
                bias.view(count, -1, 1), weight.view(count, -1, weight.shape[-1]), h.transpose(1, 2)
            )
            outputs.append(F.glu(y, dim=1).flatten(0, 1))  # (bands * S w 2, B T)
        outputs.append(outputs[0].new_zeros(1, outputs[0].shape[1]))
        rows = torch.cat(outputs)
        total = rows.index_select(0, self.sources[0])
        for source in self.sources[1:]:
            total = total + rows.index_select(0, source)
        return total

    def _folded_weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """First layer with the norm's affine part, (2, K, N, H) and (2, K, 1, H), and the second.

        tanh(x) = 2 sigmoid(2 x) - 1, and PyTorch's sigmoid is many times faster on a CPU; the
        factors and the shift go into the layers before and behind.
        """
        weight1 = self.weight1 * (2.0 * self.norm_weight[..., None])
        bias1 = 2.0 * (self.bias1[:, :, None] + self.norm_bias[:, :, None] @ self.weight1)
        return weight1, bias1, 2.0 * self.weight2, self.bias2 - self.weight2.sum(-1)
