"""S4M and S4M-tiny: multi-scale separator with state-space layers (Chen et al., Interspeech 2023).

One block of convolutions at four rates, an S4 layer on the coarsest and local attention on the way
up, is applied B times with the same weights; S4M has further S4 layers on the way up. Departures
from the published code, which has no S4M and feeds the wrong scale into its first decoder layer,
are named at their options.

The input is one of two kinds. Waveforms (ESPnet's encoder and decoder ``same``) pass through the
paper's own linear filterbank and joint decoder. Features (encoder and decoder ``conv`` or
``conv_chunk``) are masked directly; the causal variant, ours, works on them, since streams need
ESPnet's framing.

Level: the masks multiply the encoder's linear output and the first norm divides by its level, so
the separator is equivariant to gain down to inputs of about -100 dB of full scale.

Legend: B batch, N samples, L frames, F filters or input features, O bottleneck width, S speakers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from espnet2.enh.separator.abs_separator import AbsSeparator
from torch import Tensor, nn

from espnet2_sepx.layers.kernels import keep_freed_memory
from espnet2_sepx.layers.multi_scale import Linear, MultiScaleBlock, Plan
from espnet2_sepx.layers.multirate import DepthwiseConv, FrameNorm, Memory
from espnet2_sepx.separators.masking import check_at_least_one, check_one_of

MID_BLOCKS = ("s4", "none")
INPUT_EPS = 1e-12
"""Of the norm of the encoder's output: the 1e-8 of all other norms would be a level in quiet
recordings."""


@dataclass(frozen=True)
class S4MState:
    """What a stream carries from chunk to chunk; bounded, whatever the stream's length."""

    frames: int = 0
    """Frames so far."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)


class S4MSeparator(AbsSeparator):
    """Separator of waveforms (``input_dim`` 1) or of features (more).

    Args:
        input_dim: 1 for waveforms, else F, the encoder's number of filters.
        num_spk: S.
        sample_rate: in Hz, of waveforms.
        window_ms: length of the filters for waveforms; they move by a quarter of it.
        bottleneck_dim: O, of what the repeats pass on.
        hidden_dim: width inside the block and of S4.
        num_scales: rates; each has half the frames of the one before.
        num_repeats: applications of the block.
        state_dim: state size of every S4 layer, even.
        mid: "s4", or "none" (Table 3, system 1: no S4 and feed-forward on the coarsest scale).
        decoder_s4: S4 layers on the way up, too: true is S4M, false is S4M-tiny.
        kernel: "dplr" (the paper's diagonal plus low rank) or "diag".
        bidirectional: two-sided S4.
        causal: look at the past only, with cumulative norms and one-sided windows (our variant);
            needs features and ``bidirectional`` false. Enables ``forward_streaming``.
        legacy_top_fusion: as the published code, start on the way up from the second finest scale
            instead of the coarsest. Nine tensors of the coarsest scale's fusion then have no
            gradient.

    Attributes:
        lookahead_frames: frames behind an output frame that it depends on; none if all.
    """

    def __init__(
        self,
        input_dim: int,
        num_spk: int = 2,
        sample_rate: int = 16000,
        window_ms: float = 4.0,
        bottleneck_dim: int = 128,
        hidden_dim: int = 512,
        num_scales: int = 4,
        num_repeats: int = 16,
        state_dim: int = 16,
        mid: str = "s4",
        decoder_s4: bool = False,
        kernel: str = "dplr",
        bidirectional: bool = True,
        causal: bool = False,
        legacy_top_fusion: bool = False,
    ) -> None:
        super().__init__()
        check_at_least_one(
            input_dim=input_dim,
            num_spk=num_spk,
            bottleneck_dim=bottleneck_dim,
            hidden_dim=hidden_dim,
            num_scales=num_scales,
            num_repeats=num_repeats,
        )
        check_one_of(MID_BLOCKS, mid=mid)
        if causal and bidirectional:
            raise ValueError("bidirectional must be false with causal: true, got true")
        if causal and input_dim == 1:
            raise ValueError("causal needs features: input_dim above 1 (encoder: conv), got 1")
        if causal and legacy_top_fusion:
            raise ValueError("legacy_top_fusion must be false with causal: true, got true")
        keep_freed_memory()
        self._num_spk = num_spk
        self.num_repeats = num_repeats
        self.causal = causal
        self.filterbank = None
        filters = input_dim
        if input_dim == 1:
            self.filterbank = Filterbank(num_spk, sample_rate, window_ms)
            filters = self.filterbank.num_filters
        self.input_norm = FrameNorm(filters, INPUT_EPS)
        self.bottleneck = Linear(filters, bottleneck_dim)
        self.block = MultiScaleBlock(
            bottleneck_dim,
            hidden_dim,
            num_scales,
            state_dim,
            kernel,
            bidirectional,
            mid,
            decoder_s4,
            causal,
            legacy_top_fusion,
        )
        self.repeat_conv = DepthwiseConv(bottleneck_dim, 1, bias=True)
        self.repeat_act = nn.PReLU()
        self.mask_act = nn.PReLU()
        self.mask = Linear(bottleneck_dim, num_spk * filters)

    @property
    def num_spk(self) -> int:
        return self._num_spk

    @property
    def lookahead_frames(self) -> int | None:
        return 0 if self.causal else None

    def forward(
        self, input: Tensor, ilens: Tensor, additional: dict | None = None
    ) -> tuple[list[Tensor], Tensor, OrderedDict]:
        """Separate a batch.

        Items of equal length are worked off together and those of another length apart from them:
        norms, pooling and interpolation run over an item's own frames, as if it were alone.

        Args:
            input: waveforms (B, N), or features (B, L, F).
            ilens: valid samples or frames (B,).
            additional: unused.

        Returns:
            S tensors like ``input``, zero after an item's length; ``ilens``; others:
            ``mask_spk{n}`` (B, L, F), detached.
        """
        lengths = [int(n) for n in ilens.tolist()]
        size = input.shape[1]
        expected = 2 if self.filterbank is not None else 3
        if input.dim() != expected:
            shape = "(B, N)" if expected == 2 else "(B, L, F)"
            raise ValueError(f"input must be {shape}, got {tuple(input.shape)}")
        if not all(1 <= n <= size for n in lengths):
            raise ValueError(f"ilens must lie in 1..{size} (the padded length), got {lengths}")
        if min(lengths) == size:
            outputs, masks = self._separate(input)
        else:
            outputs, masks = self._separate_by_length(input, lengths)
        others = OrderedDict(
            (f"mask_spk{n}", mask.detach()) for n, mask in enumerate(masks.unbind(2), start=1)
        )
        return list(outputs.unbind(1)), ilens, others

    def forward_streaming(
        self, input_frame: Tensor, state: S4MState | None = None
    ) -> tuple[list[Tensor], S4MState, OrderedDict]:
        """Continue a stream of features with the next frames (B, n, F), n of any size from 1 on.

        The outputs of all chunks together are those of ``forward``. Many frames at once are much
        faster than one by one.

        Raises:
            ValueError: the separator is not causal.
        """
        if not self.causal:
            raise ValueError("forward_streaming needs a separator built with causal: true")
        state = S4MState() if state is None else state
        memory = Memory(state.kept)
        frames = input_frame.shape[1]
        masks = self._masks(input_frame, self.block.stream_plan(frames, state.frames), memory)
        outputs = masks * input_frame[:, :, None]
        others = OrderedDict(
            (f"mask_spk{n}", mask.detach()) for n, mask in enumerate(masks.unbind(2), start=1)
        )
        return list(outputs.unbind(2)), S4MState(state.frames + frames, memory.left), others

    def _separate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (B, S, N) or (B, S, L, F), and masks (B, L, S, F)."""
        features = x if self.filterbank is None else self.filterbank.analyse(x)
        masks = self._masks(features, self.block.plan(features.shape[1]))
        masked = masks * features[:, :, None]
        if self.filterbank is None:
            return masked.transpose(1, 2), masks
        return self.filterbank.synthesise(masked, x.shape[1]), masks

    def _separate_by_length(self, x: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
        outputs: list[Tensor] = [x[0]] * len(lengths)
        masks: list[Tensor] = [x[0]] * len(lengths)
        for length in set(lengths):
            items = [item for item, own in enumerate(lengths) if own == length]
            separated, mask = self._separate(x[items, :length])
            for item, own_output, own_mask in zip(items, separated, mask, strict=True):
                outputs[item], masks[item] = own_output, own_mask
        size = x.shape[1]
        frames = size if self.filterbank is None else self.filterbank.num_frames(size)
        padded = [_pad_dim(y, 1, size) for y in outputs], [_pad_dim(m, 0, frames) for m in masks]
        return torch.stack(padded[0]), torch.stack(padded[1])

    def _masks(self, features: Tensor, plan: Plan, memory: Memory | None = None) -> Tensor:
        """(B, L, F) -> (B, L, S, F)."""

        def part(name: str) -> Memory | None:
            return None if memory is None else memory.part(name)

        start = self.bottleneck(self.input_norm(features, self.causal, part("input")))
        x = self.block(start, plan, part("0"))
        for repeat in range(1, self.num_repeats):
            x = self.repeat_act(self.repeat_conv(start + x, plan.rates, 0))
            x = self.block(x, plan, part(str(repeat)))
        return F.relu(self.mask(self.mask_act(x))).unflatten(-1, (self._num_spk, -1))


class Filterbank(nn.Module):
    """The paper's analysis of waveforms, and the synthesis of all speakers together.

    Filters of k samples move by k/4; k/2 + 1 of them, without a nonlinearity. The synthesis is one
    transposed convolution from the masked outputs of all speakers to all waveforms.
    """

    def __init__(self, num_spk: int, sample_rate: int, window_ms: float) -> None:
        super().__init__()
        window = round(window_ms * sample_rate / 1000)
        if window < 4 or window % 4:
            raise ValueError(
                "window_ms x sample_rate / 1000 must be a positive multiple of 4 samples, got "
                f"{window} from window_ms={window_ms}, sample_rate={sample_rate}"
            )
        self.window, self.hop = window, window // 4
        self.num_filters = window // 2 + 1
        self.encoder = nn.Conv1d(
            1, self.num_filters, window, self.hop, padding=window // 2, bias=False
        )
        self.decoder = nn.ConvTranspose1d(
            num_spk * self.num_filters, num_spk, window, self.hop, padding=window // 2, bias=False
        )

    def num_frames(self, samples: int) -> int:
        left, right = self._padding(samples)
        return (left + samples + right) // self.hop + 1

    def analyse(self, wave: Tensor) -> Tensor:
        """(B, N) -> (B, L, F)."""
        padded = F.pad(wave, self._padding(wave.shape[1]))
        return self.encoder(padded[:, None]).transpose(1, 2)

    def synthesise(self, masked: Tensor, samples: int) -> Tensor:
        """(B, L, S, F) -> (B, S, N)."""
        waves = self.decoder(masked.flatten(2).transpose(1, 2))
        left, _ = self._padding(samples)
        return waves[..., left : left + samples]

    def _padding(self, samples: int) -> tuple[int, int]:
        overlap = self.window - self.hop
        return overlap, self.window - (self.hop + samples % self.window) % self.window + overlap


def _pad_dim(x: Tensor, dim: int, size: int) -> Tensor:
    """Zeros after ``x`` along ``dim``, up to ``size``."""
    behind = [0, 0] * (x.dim() - 1 - dim)
    return F.pad(x, (*behind, 0, size - x.shape[dim]))
