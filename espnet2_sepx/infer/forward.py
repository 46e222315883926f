"""One forward pass of an ESPnet ``enh`` model, step by step what ESPnet's ``SeparateSpeech`` does.

The model is ESPnet's own object or a ``build.Network``. Nothing of ESPnet is imported here: its
task and model modules take seconds.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

EnhModel = Any  # an ESPnetEnhancementModel or a Network

# Separators whose encoder and decoder follow the rate of the recording, as listed by ESPnet.
_ANY_RATE = {
    "espnet2.enh.separator.bsrnn_separator": "BSRNNSeparator",
    "espnet2.enh.separator.tfgridnetv3_separator": "TFGridNetV3",
    "espnet2.enh.separator.uses_separator": "USESSeparator",
}


@torch.no_grad()
def separate(model: EnhModel, mixture: Tensor, fs: int) -> list[Tensor]:
    """Separate ``(1, samples[, channels])``, at least one frame of the encoder long.

    Returns:
        one waveform (1, samples) per speaker.
    """
    samples = mixture.shape[1]
    any_rate = follows_rate(model)
    everything_48k = getattr(model, "always_forward_in_48k", False) and not any_rate
    if everything_48k:
        mixture = _resample(mixture, fs, 48000)
    lengths = torch.full((1,), mixture.shape[1], dtype=torch.long, device=mixture.device)
    scale = None
    if getattr(model, "normalize_variance_per_ch", False):
        scale = mixture.std(1, keepdim=True)
    elif getattr(model, "normalize_variance", False):
        scale = mixture.std(tuple(range(1, mixture.dim())), keepdim=True)
    if scale is not None:
        mixture = mixture / torch.where(scale > 0, scale, 1)  # silence gives silence
    rate = fs if any_rate else None
    features, frames = model.encoder(mixture, lengths, fs=rate)
    if _is_instance(model, "espnet2.enh.diffusion_enh", "ESPnetDiffusionModel"):
        estimates = [model.enhance(features)]
    else:
        estimates, _, _ = model.separator(features, frames, {})
    waves = [model.decoder(estimate, lengths, fs=rate)[0] for estimate in estimates]
    if scale is not None:
        if scale.dim() > 2:  # (1, 1, 1 or channels)
            scale = scale[:, :, model.ref_channel if scale.shape[2] > 1 else 0]
        waves = [wave * scale for wave in waves]
    if everything_48k:
        waves = [_resample(wave, 48000, fs)[:, :samples] for wave in waves]
    return waves


def frame_samples(model: EnhModel, fs: int) -> int:
    """Length of one frame of the encoder; 1 for an encoder without frames."""
    encoder = model.encoder
    if hasattr(encoder, "stft"):
        frame = encoder.stft.n_fft
        return frame * fs // encoder.default_fs if follows_rate(model) else frame
    return int(getattr(encoder, "kernel_size", 1))


def follows_rate(model: EnhModel) -> bool:
    """Whether ESPnet gives this separator's encoder and decoder the rate of the recording."""
    separator = getattr(model, "separator", None)
    return any(_is_instance(separator, module, name) for module, name in _ANY_RATE.items())


def _is_instance(thing: object, module: str, name: str) -> bool:
    """``isinstance`` without the import: nothing is an instance of what nobody has imported."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(thing, getattr(loaded, name))


def _resample(wave: Tensor, old: int, new: int) -> Tensor:
    import torchaudio

    return torchaudio.functional.resample(wave, old, new)
