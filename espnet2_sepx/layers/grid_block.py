"""One block of SPMamba: a path over frequency, one over time, and frame attention (section III-B).

Modules carry the names of the published implementation, so that its state dicts load as they are.

Legend: B batch, T frames, F bins, D embedding channels, I window length, J hop, H heads, E query
channels per head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet2_sepx.layers.grid import (
    ACTIVATIONS,
    ChannelNorm,
    FrameProjection,
    LSTMLayer,
    PathState,
    SequenceModel,
    attend,
    run_path,
    stream_path,
)
from espnet2_sepx.layers.mamba import MambaLayer

MODULES = ("mamba", "blstm")


@dataclass
class BlockState:
    """What a causal block remembers of the frames before."""

    path: PathState
    keys: Tensor
    """(B, H, up to context - 1, E F)"""
    values: Tensor


class GridBlock(nn.Module):
    """Frequency path, time path, attention between frames; each with a residual sum.

    Shape: ``(B, T, F, D) -> (B, T, F, D)``.

    Args:
        emb_dim: D.
        emb_ks: I.
        emb_hs: J.
        bins: F.
        f_module, t_module: "mamba" or "blstm", the sequence models.
        lstm_hidden_units: width of an LSTM in each direction.
        num_heads: H, divides D.
        approx_qk_dim: about E F.
        context: None, or causal operation with attention over so many frames.
        recompute: training computes the paths again in backward.
        mamba_options: of ``MambaLayer``.
    """

    def __init__(
        self,
        emb_dim: int,
        emb_ks: int,
        emb_hs: int,
        bins: int,
        f_module: str,
        t_module: str,
        lstm_hidden_units: int,
        num_heads: int,
        approx_qk_dim: int,
        activation: str,
        eps: float,
        context: int | None,
        recompute: bool,
        mamba_options: dict[str, object],
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)}, got {activation!r}")
        if emb_dim % num_heads != 0:
            raise ValueError(f"attn_n_head must divide emb_dim={emb_dim}, got {num_heads}")
        self.emb_ks, self.emb_hs = emb_ks, emb_hs
        self.context, self.recompute = context, recompute
        for axis, kind, both in (("intra", f_module, True), ("inter", t_module, context is None)):
            if kind not in MODULES:
                name = "f_module" if axis == "intra" else "t_module"
                raise ValueError(f"{name} must be one of {MODULES}, got {kind!r}")
            model: SequenceModel = (
                MambaLayer(emb_dim * emb_ks, bidirectional=both, eps=eps, **mamba_options)  # type: ignore[arg-type]
                if kind == "mamba"
                else LSTMLayer(emb_dim * emb_ks, lstm_hidden_units, both)
            )
            setattr(self, f"{axis}_norm", ChannelNorm(emb_dim, eps))
            setattr(self, f"{axis}_mamba" if kind == "mamba" else f"{axis}_rnn", model)
            deconv = nn.ConvTranspose1d(model.output_size, emb_dim, emb_ks, emb_hs)
            setattr(self, f"{axis}_linear", deconv)
        self.num_heads = num_heads
        widths = {"Q": math.ceil(approx_qk_dim / bins), "K": math.ceil(approx_qk_dim / bins)}
        widths["V"] = emb_dim // num_heads
        for head in range(num_heads):
            for name, width in widths.items():
                projection = FrameProjection(emb_dim, width, bins, activation, eps)
                self.add_module(f"attn_conv_{name}_{head}", projection)
        self.attn_concat_proj = FrameProjection(emb_dim, emb_dim, bins, activation, eps)

    def forward(self, x: Tensor) -> Tensor:
        frames, bins = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, self._missing(bins), 0, self._missing(frames)))
        shape = x.shape
        x = run_path(x.flatten(0, 1), *self._path("intra"), recompute=self.recompute).view(shape)
        by_bin = x.transpose(1, 2)  # (B, F, T, D)
        y = run_path(
            by_bin.flatten(0, 1),
            *self._path("inter"),
            causal=self.context is not None,
            recompute=self.recompute,
        )
        x = y.view(by_bin.shape).transpose(1, 2)[:, :frames, :bins].contiguous()
        q, k, v = (self._heads(name, x) for name in "QKV")
        return self._mix(x, attend(q, k, v, self.context))

    def forward_streaming(self, x: Tensor, state: BlockState | None) -> tuple[Tensor, BlockState]:
        """The causal block, continued after the frames that ``state`` remembers."""
        assert self.context is not None
        frames, bins = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, self._missing(bins)))
        x = run_path(x.flatten(0, 1), *self._path("intra")).view(x.shape)
        by_bin = x.transpose(1, 2)
        y, path = stream_path(
            by_bin.flatten(0, 1), *self._path("inter"), None if state is None else state.path
        )
        x = y.view(by_bin.shape).transpose(1, 2)[:, :, :bins].contiguous()
        q, k, v = (self._heads(name, x) for name in "QKV")
        if state is not None:
            k, v = torch.cat((state.keys, k), 2), torch.cat((state.values, v), 2)
        out = self._mix(x, attend(q, k, v, self.context, before=k.shape[2] - frames))
        keep = max(0, k.shape[2] - (self.context - 1))
        return out, BlockState(path, k[:, :, keep:], v[:, :, keep:])

    def _missing(self, positions: int) -> int:
        """Padding until windows fit (none for hop 1 unless the input is shorter than a window)."""
        if self.context is not None:
            return max(0, self.emb_ks - positions)
        windows = max(0, math.ceil((positions - self.emb_ks) / self.emb_hs))
        return windows * self.emb_hs + self.emb_ks - positions

    def _path(self, axis: str) -> tuple[ChannelNorm, SequenceModel, nn.ConvTranspose1d]:
        model = getattr(self, f"{axis}_mamba", None) or getattr(self, f"{axis}_rnn")
        return getattr(self, f"{axis}_norm"), model, getattr(self, f"{axis}_linear")

    def _heads(self, name: str, x: Tensor) -> Tensor:
        """(B, H, T, F channels)"""
        heads = (getattr(self, f"attn_conv_{name}_{head}") for head in range(self.num_heads))
        return torch.stack([head(x).flatten(2) for head in heads], 1)

    def _mix(self, x: Tensor, attended: Tensor) -> Tensor:
        """x + projection of what the heads (B, H, T, F V) found."""
        y = attended.unflatten(-1, (x.shape[2], -1)).permute(0, 2, 3, 1, 4).flatten(3)
        return x + self.attn_concat_proj(y)
