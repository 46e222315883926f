"""SPMamba: TF-GridNet with bidirectional Mamba in place of its LSTMs (Li et al., arXiv 2404.02063).

Convolution, blocks of a frequency path, a time path and attention between frames, transposed
convolution to one complex spectrum per speaker (a mapping, no mask). Table II's variants put
BLSTMs into one path or both.

The published model divides the waveform by its standard deviation. Here either the separator takes
the level from the spectrum (``level_norm``, the same up to about a percent), or ESPnet's model
does exactly that (``model_conf: {normalize_variance: true}`` and ``level_norm: false``), as for
imported checkpoints.

``causal`` is ours: norms per frame, convolutions and windows that end at their frame, Mamba in one
direction of time, attention over a bounded past, level of the past.

Legend: B batch, T frames, F bins, D embedding channels, S speakers.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from espnet2.enh.separator.abs_separator import AbsSeparator
from torch import Tensor, nn
from torch_complex.tensor import ComplexTensor

from espnet2_sepx.layers.grid_block import BlockState, GridBlock
from espnet2_sepx.layers.scan import BACKENDS
from espnet2_sepx.separators.masking import check_at_least_one
from espnet2_sepx.separators.spectra import LEVEL_FLOOR, as_real, level_of


@dataclass
class SPMambaState:
    """What the causal model remembers of the frames before."""

    energy: Tensor
    """(B, 1), sum of the squared bins so far"""
    frames: int
    """and in how many frames"""
    conv: Tensor
    """(B, 2, 2, F), the last two frames that went into the convolution"""
    blocks: list[BlockState]
    deconv: Tensor
    """(B, D, 2, F), and those that went into the transposed one"""


class SPMambaSeparator(AbsSeparator):
    """Separator over ESPnet's ``stft`` encoder and decoder.

    Args:
        input_dim: F, the encoder's number of bins (odd: 2(F-1)-point FFT).
        num_spk: S.
        n_layers: number of blocks.
        emb_dim: D.
        emb_ks, emb_hs: length and hop of the windows that the paths see.
        f_module, t_module: "mamba" or "blstm" (Table II).
        d_state, d_conv, expand: of Mamba: states per channel, taps, inner over outer width.
        mamba_layers: residual Mamba blocks per direction.
        lstm_hidden_units: per direction, of "blstm" modules.
        attn_n_head: attention heads; divides ``emb_dim``.
        attn_approx_qk_dim: about the width of a frame's query over all bins.
        activation: of attention's projections: "prelu", "relu", "elu", "gelu" or "silu".
        eps: of norms.
        level_norm: divide the input by its level and multiply the outputs by it.
        causal: see the module; ``emb_hs`` must be 1.
        attn_context: frames that causal attention sees, its own included.
        grad_checkpoint: training computes the paths again in backward: about a twentieth of the
            memory for a third more work.
        scan_backend: see ``espnet2_sepx.layers.scan.backends``.
    """

    def __init__(
        self,
        input_dim: int,
        num_spk: int = 2,
        n_layers: int = 6,
        emb_dim: int = 16,
        emb_ks: int = 8,
        emb_hs: int = 1,
        f_module: str = "mamba",
        t_module: str = "mamba",
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 4,
        mamba_layers: int = 1,
        lstm_hidden_units: int = 256,
        attn_n_head: int = 4,
        attn_approx_qk_dim: int = 512,
        activation: str = "prelu",
        eps: float = 1e-5,
        level_norm: bool = True,
        causal: bool = False,
        attn_context: int = 250,
        grad_checkpoint: bool = False,
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        check_at_least_one(
            input_dim=input_dim,
            num_spk=num_spk,
            n_layers=n_layers,
            emb_dim=emb_dim,
            emb_ks=emb_ks,
            emb_hs=emb_hs,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            mamba_layers=mamba_layers,
            lstm_hidden_units=lstm_hidden_units,
            attn_n_head=attn_n_head,
            attn_approx_qk_dim=attn_approx_qk_dim,
            attn_context=attn_context,
        )
        if emb_hs > emb_ks:
            raise ValueError(f"emb_hs must lie in 1..emb_ks={emb_ks}, got {emb_hs}")
        if causal and emb_hs != 1:
            raise ValueError(f"emb_hs must be 1 in a causal model, got {emb_hs}")
        if scan_backend not in ("auto", *BACKENDS):
            raise ValueError(
                f"scan_backend must be auto or one of {BACKENDS}, got {scan_backend!r}"
            )
        self._num_spk = num_spk
        self.level_norm, self.causal, self.eps = level_norm, causal, eps
        self.n_fft = 2 * (input_dim - 1)
        # In a causal model the norm's statistics are those of each frame alone.
        self.conv = nn.Sequential(
            nn.Conv2d(2, emb_dim, 3, padding=1), nn.GroupNorm(1, emb_dim, eps=eps)
        )
        self.blocks = nn.ModuleList(
            GridBlock(
                emb_dim,
                emb_ks,
                emb_hs,
                input_dim,
                f_module,
                t_module,
                lstm_hidden_units,
                attn_n_head,
                attn_approx_qk_dim,
                activation,
                eps,
                context=attn_context if causal else None,
                recompute=grad_checkpoint,
                mamba_options={
                    "num_layers": mamba_layers,
                    "d_state": d_state,
                    "d_conv": d_conv,
                    "expand": expand,
                    "backend": scan_backend,
                },
            )
            for _ in range(n_layers)
        )
        self.deconv = nn.ConvTranspose2d(emb_dim, 2 * num_spk, 3, padding=1)

    @property
    def num_spk(self) -> int:
        return self._num_spk

    @property
    def algorithmic_latency(self) -> int | None:
        """In samples: a frame, whose last sample its first output needs; None if not causal."""
        return self.n_fft if self.causal else None

    def forward(
        self, input: Tensor, ilens: Tensor, additional: dict | None = None
    ) -> tuple[list[Tensor], Tensor, OrderedDict]:
        """Separate a batch of spectra.

        Norms, attention and the backward direction see the whole item, so items of different
        lengths are computed one by one, each as if it were alone.

        Args:
            input: (B, T, F) complex (torch's or ESPnet's ``ComplexTensor``) or (B, T, F, 2) real.
            ilens: valid frames (B,).
            additional: unused.

        Returns:
            S spectra (B, T, F), complex of the kind of the input (torch's for real input);
            ``ilens``; others: ``mask_spk{n}`` (B, T, F) complex, detached: output over input (the
            model has no masks of its own).

        Raises:
            ValueError: ``ilens`` outside of 1..T, or an input of another shape.
        """
        x, espnet_complex = as_real(input)
        lengths = [int(n) for n in ilens]
        frames = x.shape[1]
        if not all(1 <= n <= frames for n in lengths):
            raise ValueError(f"ilens must lie in 1..{frames} (the padded length), got {lengths}")
        if min(lengths) == frames:
            spectra = self._separate(x)
        else:
            items = [self._separate(x[i : i + 1, :n]) for i, n in enumerate(lengths)]
            spectra = torch.cat([F.pad(y, (0, 0, 0, 0, 0, frames - y.shape[2])) for y in items])
        outputs = list(torch.view_as_complex(spectra).unbind(1))
        mixture = torch.view_as_complex(x.detach().contiguous())
        others = OrderedDict(
            (f"mask_spk{n}", _ratio(y.detach(), mixture)) for n, y in enumerate(outputs, start=1)
        )
        if espnet_complex:
            outputs = [ComplexTensor(y.real, y.imag) for y in outputs]
        return outputs, ilens, others

    def forward_streaming(
        self, input_frame: Tensor, buffer: SPMambaState | None = None
    ) -> tuple[list[Tensor], SPMambaState, OrderedDict]:
        """Separate the next frames of a causal model; equals ``forward`` on the whole.

        Args:
            input_frame: (B, T, F), one frame or more, of the kinds that ``forward`` takes.
            buffer: the state that the call before returned; None at the start.

        Returns:
            S spectra (B, T, F), the new state (of bounded size), others: empty.
        """
        if not self.causal:
            raise ValueError("causal must be true for forward_streaming, got false")
        x, espnet_complex = as_real(input_frame)
        spectra, state = self._stream(x, buffer)
        assert state is not None
        outputs = list(torch.view_as_complex(spectra).unbind(1))
        if espnet_complex:
            outputs = [ComplexTensor(y.real, y.imag) for y in outputs]
        return outputs, state, OrderedDict()

    def _separate(self, x: Tensor) -> Tensor:
        """(B, T, F, 2) to (B, S, T, F, 2), without padding."""
        if self.causal:
            return self._stream(x, None, keep_state=False)[0]
        x = _without_undefined(x)
        x, gain = self._levelled(x, x.square().sum((1, 2, 3))[:, None], x.shape[1])
        conv, norm = self.conv
        y = norm(conv(x.permute(0, 3, 1, 2)).to(x.dtype)).permute(0, 2, 3, 1).contiguous()
        for block in self.blocks:
            y = block(y)
        return self._spectra(self.deconv(y.permute(0, 3, 1, 2)), x.dtype, gain)

    def _stream(
        self, x: Tensor, state: SPMambaState | None, keep_state: bool = True
    ) -> tuple[Tensor, SPMambaState | None]:
        """The causal model on (B, T, F, 2), after the frames that ``state`` remembers."""
        batch, frames, bins, _ = x.shape
        x = _without_undefined(x)
        energy = x.square().sum((2, 3)).cumsum(1)
        count = torch.arange(1, frames + 1, device=x.device)
        if state is not None:
            energy, count = energy + state.energy, count + state.frames
        x, gain = self._levelled(x, energy, count)
        conv, norm = self.conv
        x = x.permute(0, 3, 1, 2)
        before = x.new_zeros(batch, 2, 2, bins) if state is None else state.conv
        x = torch.cat((before, x), 2)
        assert isinstance(conv, nn.Conv2d)
        y = F.conv2d(x, conv.weight, conv.bias, padding=(0, 1)).to(x.dtype)
        y = y.transpose(1, 2).flatten(0, 1)  # (B T, D, F)
        y = norm(y).view(batch, frames, -1, bins).transpose(2, 3).contiguous()
        states = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, GridBlock)
            if keep_state:
                y, kept = block.forward_streaming(y, None if state is None else state.blocks[index])
                states.append(kept)
            else:
                y = block(y)
        y = y.permute(0, 3, 1, 2)
        before = y.new_zeros(batch, y.shape[1], 2, bins) if state is None else state.deconv
        y = torch.cat((before, y), 2)
        out = F.conv_transpose2d(y, self.deconv.weight, self.deconv.bias, padding=(0, 1))
        spectra = self._spectra(out[:, :, 2 : 2 + frames], x.dtype, gain)
        if not keep_state:
            return spectra, None
        total = 0 if state is None else state.frames
        return spectra, SPMambaState(
            energy[:, -1:], total + frames, x[:, :, -2:], states, y[:, :, -2:]
        )

    def _levelled(self, x: Tensor, energy: Tensor, frames: Tensor | int) -> tuple[Tensor, Tensor]:
        """The input at level 1 if wanted, and the gain (B, 1 or T) of outputs: 0 for silence."""
        if not self.level_norm:
            return x, (energy > 0).to(x.dtype)
        level = level_of(energy, frames, x.shape[2])
        return x / level.clamp_min(LEVEL_FLOOR)[..., None, None], level

    def _spectra(self, y: Tensor, dtype: torch.dtype, gain: Tensor) -> Tensor:
        """(B, 2 S, T, F) to (B, S, T, F, 2), times the gain (B, 1 or T)."""
        spectra = y.to(dtype).unflatten(1, (self.num_spk, 2)).permute(0, 1, 3, 4, 2)
        return (spectra * gain[:, None, :, None, None]).contiguous()


def _without_undefined(x: Tensor) -> Tensor:
    """Items without any number are silence: ESPnet's ``normalize_variance`` divided it by zero.

    (The imaginary part of the outermost bins is a number even then.)
    """
    defined = x[..., 0].isfinite().flatten(1).any(1)
    return torch.where(defined.view(-1, 1, 1, 1), x, 0.0)


def _ratio(y: Tensor, x: Tensor) -> Tensor:
    """y / x of spectra; 0 where x is 0."""
    return torch.where(x == 0, torch.zeros_like(y), y / x)
