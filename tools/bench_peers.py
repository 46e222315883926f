"""Separators of other toolkits, for `make bench`: names of ``peer`` in bench/systems.yaml.

A peer is a function without arguments that returns a ``torch.nn.Module`` in eval mode, which maps
``(1, samples)`` to ``(1, samples, speakers)``. A missing toolkit is an ``ImportError`` that says
how to get it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Masked(nn.Module):
    """SpeechBrain's time-domain separation: encoder, mask network, decoder."""

    def __init__(self, encoder: nn.Module, masknet: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.masknet, self.decoder = encoder, masknet, decoder

    def forward(self, mixture: Tensor) -> Tensor:
        features = self.encoder(mixture)
        separated = self.masknet(features) * features
        return torch.stack([self.decoder(one) for one in separated], dim=-1)


def _speechbrain():
    try:
        from speechbrain.lobes.models import dual_path, resepformer
    except ImportError as error:
        raise ImportError("needs SpeechBrain: python -m pip install speechbrain") from error
    return dual_path, resepformer


def speechbrain_sepformer() -> nn.Module:
    """recipes/WSJ0Mix/separation/hparams/sepformer.yaml: 25.7 M parameters."""
    dual_path, _ = _speechbrain()
    return dual_path.SepformerWrapper().eval()


def speechbrain_resepformer() -> nn.Module:
    """recipes/WSJ0Mix/separation/hparams/resepformer.yaml: 8.0 M parameters."""
    dual_path, resepformer = _speechbrain()

    def block() -> nn.Module:
        return resepformer.SBTransformerBlock_wnormandskip(
            num_layers=8,
            d_model=128,
            nhead=8,
            d_ffn=1024,
            dropout=0.0,
            use_positional_encoding=True,
            norm_before=True,
        )

    separator = resepformer.ResourceEfficientSeparator(
        input_dim=128,
        causal=False,
        num_spk=2,
        nonlinear="relu",
        layer=2,
        unit=256,
        segment_size=150,
        mem_type="av",
        seg_model=block(),
        mem_model=block(),
    )
    encoder = dual_path.Encoder(kernel_size=16, out_channels=128)
    decoder = dual_path.Decoder(
        in_channels=128, out_channels=1, kernel_size=16, stride=8, bias=False
    )
    return _Masked(encoder, separator, decoder).eval()
