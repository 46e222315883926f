"""TF-Conformer and TF-MoE: time-frequency mixture-of-experts separator (Hu et al.).

Mel band split, R blocks of a frequency module and a time module, complex mask plus residual per
band. Each module is a Conformer ("conformer"), a Conformer whose feed-forwards are sparse mixtures
of experts ("moe"), or a recurrent layer ("rnn").

Not here: causal or streaming operation (attention and batch-global norms see the whole utterance).

Legend: B batch, T frames, F bins, K bands, N channels, S speakers, E experts, J chosen experts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from espnet2.enh.separator.abs_separator import AbsSeparator
from torch import Tensor, nn
from torch_complex.tensor import ComplexTensor

from espnet2_sepx.layers.band_split import BandSplit, MaskDecoder, check_bands, mel_bands
from espnet2_sepx.layers.conformer import ConformerModule
from espnet2_sepx.layers.cost_track import CostTrack
from espnet2_sepx.layers.kernels import keep_freed_memory
from espnet2_sepx.layers.moe import MoEFeedForward
from espnet2_sepx.layers.norms import Padding
from espnet2_sepx.layers.rnn import RNNModule
from espnet2_sepx.layers.routing import RoutingRecord, RoutingStats
from espnet2_sepx.separators.spectra import LEVEL_FLOOR, as_real, level_of

MODULES = ("conformer", "moe", "rnn")
ALIVE_SHARE = 0.05
"""An expert counts as alive when its share of the tokens exceeds this part of an even share."""


class TFMoESeparator(AbsSeparator):
    """Separator over ESPnet's ``stft`` encoder and decoder.

    Args:
        input_dim: F, the encoder's number of bins (odd: 2(F-1)-point FFT).
        num_spk: S.
        num_channels: N.
        num_blocks: R.
        num_bands: K mel bands (ignored when ``bands`` is given).
        sample_rate: in Hz, places the mel bands.
        bands: explicit inclusive [first bin, last bin] pairs.
        t_module, f_module: "conformer", "moe" or "rnn".
        rnn_type: "gru" or "lstm", of "rnn" modules.
        num_experts: E; one number, or [time, frequency].
        top_k: J; one number, or [time, frequency].
        gate: "prob", "straight_through" or "normalised" (see MoEFeedForward).
        balance_scope: "sequence" or "batch" (see MoEFeedForward).
        num_heads, head_dim: of attention; the inner width is their product.
        ffn_expansion: hidden width of feed-forwards over N.
        conv_kernel: odd length of the depthwise convolution.
        conv_expansion: inner width of the convolution module over N.
        max_rel_pos: relative positions are clipped to this distance.
        dropout: before every residual sum.
        level_norm: divide the input by its level and multiply the outputs by it, which makes the
            separator equivariant to gain.

    Attributes:
        record_routing: set true to have every forward pass fill ``last_routing``.
        last_routing: RoutingRecord of each mixture layer in order of execution, on the CPU.
        record_cost: set true to have every forward pass fill ``last_cost``.
        last_cost: CostTrack of the experts' work; densest is all E experts for every token.
    """

    def __init__(
        self,
        input_dim: int,
        num_spk: int = 2,
        num_channels: int = 32,
        num_blocks: int = 6,
        num_bands: int = 80,
        sample_rate: int = 16000,
        bands: Sequence[Sequence[int]] | None = None,
        t_module: str = "moe",
        f_module: str = "moe",
        rnn_type: str = "gru",
        num_experts: int | Sequence[int] = 12,
        top_k: int | Sequence[int] = 1,
        gate: str = "prob",
        balance_scope: str = "sequence",
        num_heads: int = 4,
        head_dim: int = 16,
        ffn_expansion: int = 4,
        conv_kernel: int = 15,
        conv_expansion: int = 2,
        max_rel_pos: int = 512,
        dropout: float = 0.0,
        level_norm: bool = True,
    ) -> None:
        super().__init__()
        _check_at_least_one(
            input_dim=input_dim,
            num_spk=num_spk,
            num_channels=num_channels,
            num_blocks=num_blocks,
            num_heads=num_heads,
            head_dim=head_dim,
            ffn_expansion=ffn_expansion,
            conv_expansion=conv_expansion,
            max_rel_pos=max_rel_pos,
        )
        if conv_kernel < 1 or conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel must be odd and positive, got {conv_kernel}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        keep_freed_memory()
        if bands is None:
            self.bands = mel_bands(input_dim, num_bands, sample_rate)
        else:
            self.bands = check_bands(bands, input_dim)
        self._num_spk = num_spk
        self.level_norm = level_norm
        self.record_routing = False
        self.last_routing: list[RoutingRecord] = []
        self.record_cost = False
        self.last_cost: CostTrack | None = None
        experts_t, experts_f = _per_axis("num_experts", num_experts)
        top_k_t, top_k_f = _per_axis("top_k", top_k)

        def module(kind: str, axis: str, experts: int, chosen: int) -> nn.Module:
            if kind not in MODULES:
                raise ValueError(f"{axis[0]}_module must be one of {MODULES}, got {kind!r}")
            if kind == "rnn":
                return RNNModule(num_channels, axis, rnn_type, dropout)
            options = {
                "num_experts": experts,
                "top_k": chosen,
                "gate": gate,
                "balance_scope": balance_scope,
            }
            return ConformerModule(
                num_channels,
                axis,
                experts=options if kind == "moe" else None,
                num_heads=num_heads,
                head_dim=head_dim,
                ffn_expansion=ffn_expansion,
                conv_kernel=conv_kernel,
                conv_expansion=conv_expansion,
                max_rel_pos=max_rel_pos,
                dropout=dropout,
            )

        self.band_split = BandSplit(self.bands, num_channels)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(  # in order of execution (the paper lists the F-module first)
                {
                    "frequency": module(f_module, "frequency", experts_f, top_k_f),
                    "time": module(t_module, "time", experts_t, top_k_t),
                }
            )
            for _ in range(num_blocks)
        )
        self.mask_decoder = MaskDecoder(self.bands, num_channels, num_spk)

    @property
    def num_spk(self) -> int:
        return self._num_spk

    def forward(
        self, input: Tensor, ilens: Tensor, additional: dict | None = None
    ) -> tuple[list[Tensor], Tensor, OrderedDict]:
        """Separate a batch of spectra.

        Args:
            input: (B, T, F) complex (torch's or ESPnet's ``ComplexTensor``) or (B, T, F, 2) real.
            ilens: valid frames (B,).
            additional: unused.

        Returns:
            S spectra (B, T, F), complex of the kind of the input (torch's for real input);
            ``ilens``; others: ``mask_spk{n}`` (B, T, F) complex, detached; ``moe_balance``, 0-dim,
            the sum of the mixture layers' balance losses (0 without any); detached 0-dim figures of
            each mixture layer:
            ``moe_{t|f}{block}_ffn{1|2}_{balance,max_share,min_share,alive,top1_prob}``, where
            shares are relative to an even share 1/E.
        """
        spectrum, espnet_complex = as_real(input)
        padding = Padding.from_lengths(ilens, spectrum.shape[1])
        if padding is not None:
            spectrum = spectrum * padding.like(spectrum)
        level = _level(spectrum, ilens) if self.level_norm else None
        x = spectrum if level is None else spectrum / level.clamp_min(LEVEL_FLOOR)
        z = self.band_split(x, padding)
        stats: OrderedDict[tuple[str, int, int], RoutingStats] = OrderedDict()
        for index, block in enumerate(self.blocks, start=1):
            assert isinstance(block, nn.ModuleDict)
            for axis, module in block.items():
                if isinstance(module, RNNModule):
                    z = module(z, padding)
                else:
                    z, layer_stats = module(z, padding)
                    for ffn, layer in enumerate(layer_stats, start=1):
                        stats[axis, index, ffn] = layer
        mask, residual = (
            part.float() if part.dtype != x.dtype else part
            for part in self.mask_decoder(z, padding)
        )
        outputs, masks = _apply_mask(mask, residual, x, level, padding)
        others = OrderedDict((f"mask_spk{n}", m.detach()) for n, m in enumerate(masks, start=1))
        others.update(_routing_figures(stats, mask))
        if self.record_routing:
            self.last_routing = _routing_records(stats, ilens, z.shape[:3])
        if self.record_cost:
            self.last_cost = self._cost_track(stats, ilens, z.shape[:3])
        if espnet_complex:
            outputs = [ComplexTensor(output.real, output.imag) for output in outputs]
        return outputs, ilens, others

    def _cost_track(
        self,
        stats: OrderedDict[tuple[str, int, int], RoutingStats],
        ilens: Tensor,
        cells: torch.Size,
    ) -> CostTrack:
        """Two products per chosen expert and token; every frame of B, T, K cells has K tokens."""
        executed = torch.zeros(cells[:2], dtype=torch.float64)
        densest = torch.zeros_like(executed)
        for (axis, block, ffn), layer in stats.items():
            experts = self.get_submodule(f"blocks.{block - 1}.{axis}.ffn{ffn}")
            assert isinstance(experts, MoEFeedForward)
            one = experts.weight1[0].numel() + experts.weight2[0].numel()
            executed += one * cells[2] * layer.expert.shape[1]
            densest += one * cells[2] * experts.weight1.shape[0]
        return CostTrack(executed, densest, _valid(ilens, cells[1]))


def _check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _per_axis(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """(time, frequency) from one number or a pair."""
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise ValueError(f"{name} must be one number or [time, frequency], got {list(value)}")
    return int(value[0]), int(value[1])


def _level(spectrum: Tensor, ilens: Tensor) -> Tensor:
    """Level of each item's waveform, (B, 1, 1, 1).

    Only valid frames count (padded ones are zero). The scale matters: masks are relative to the
    input, residuals are not; ten times smaller an input makes training start on residuals alone.
    """
    energy = spectrum.square().sum((1, 2, 3))
    return level_of(energy, ilens.to(spectrum), spectrum.shape[2]).view(-1, 1, 1, 1)


def _apply_mask(
    mask: Tensor, residual: Tensor, x: Tensor, level: Tensor | None, padding: Padding | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Per speaker: mask * mixture + residual (complex), and the mask, each (B, T, F) complex."""
    real, imag = x.permute(3, 2, 0, 1)  # (F, B, T)
    spk_real = mask[:, :, 0] * real - mask[:, :, 1] * imag + residual[:, :, 0]
    spk_imag = mask[:, :, 0] * imag + mask[:, :, 1] * real + residual[:, :, 1]
    spectra = torch.complex(spk_real, spk_imag)  # (S, F, B, T)
    if level is not None:
        spectra = spectra * level.view(-1, 1)
    if padding is not None:
        spectra = spectra * padding.valid
    outputs = spectra.permute(0, 2, 3, 1).unbind(0)
    masks = torch.complex(mask[:, :, 0].detach(), mask[:, :, 1].detach())
    return list(outputs), list(masks.permute(0, 2, 3, 1).unbind(0))


def _routing_figures(
    stats: OrderedDict[tuple[str, int, int], RoutingStats], like: Tensor
) -> OrderedDict[str, Tensor]:
    """The loss term and the figures to log."""
    figures: OrderedDict[str, Tensor] = OrderedDict()
    total = like.new_zeros(())
    for (axis, block, ffn), layer in stats.items():
        total = total + layer.balance
        share = layer.share * layer.share.numel()
        for name, value in (
            ("balance", layer.balance.detach()),
            ("max_share", share.max()),
            ("min_share", share.min()),
            ("alive", (share > ALIVE_SHARE).sum().to(share.dtype)),
            ("top1_prob", layer.top1_prob),
        ):
            figures[f"moe_{axis[0]}{block}_ffn{ffn}_{name}"] = value
    figures["moe_balance"] = total
    figures.move_to_end("moe_balance", last=False)
    return figures


def _valid(ilens: Tensor, frames: int) -> Tensor:
    """Which frames are not padding, ``(B, T)`` on the CPU."""
    return torch.arange(frames) < ilens.cpu()[:, None]


def _routing_records(
    stats: OrderedDict[tuple[str, int, int], RoutingStats], ilens: Tensor, shape: torch.Size
) -> list[RoutingRecord]:
    valid = _valid(ilens, shape[1])
    return [
        RoutingRecord(
            axis=axis,
            block=block,
            ffn=ffn,
            expert=layer.expert.to("cpu").view(*shape, -1),
            prob=layer.prob.to("cpu", torch.float32).view(*shape, -1),
            valid=valid,
        )
        for (axis, block, ffn), layer in stats.items()
    ]
