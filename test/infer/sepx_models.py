"""Tiny experiments with random parameters, and separators that know the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml

from espnet2_sepx.infer.build import build_network
from espnet2_sepx.infer.separator import Options, Separator

RATE = 8000
STFT = {"n_fft": 256, "hop_length": 128}
CONV = {"channel": 16, "kernel_size": 16, "stride": 8}

TF_MOE = {
    "encoder": "stft",
    "encoder_conf": STFT,
    "separator": "tf_moe",
    "separator_conf": {
        **{"num_spk": 2, "sample_rate": RATE, "num_channels": 8, "num_blocks": 1},
        **{"num_bands": 12, "num_experts": 2, "num_heads": 2, "head_dim": 4},
    },
    "decoder": "stft",
    "decoder_conf": STFT,
}
SKIM = {
    "encoder": "conv",
    "encoder_conf": CONV,
    "separator": "skim",
    "separator_conf": {"num_spk": 2, "layer": 2, "unit": 16, "segment_size": 20, "causal": True},
    "decoder": "conv",
    "decoder_conf": CONV,
    "preprocessor_conf": {"sample_rate": RATE},
}
RE_SEPFORMER = {
    "encoder": "conv_chunk",
    "encoder_conf": {**CONV, "chunk_size": 15},
    "separator": "re_sepformer",
    "separator_conf": {
        **{"num_spk": 2, "causal": "chunk", "chunk_size": 15, "num_heads": 2, "intra_layers": 1},
        **{"intra_ffn_dim": 16, "memory_layers": 1, "memory_ffn_dim": 16, "memory_context": 8},
    },
    "decoder": "conv_chunk",
    "decoder_conf": {**CONV, "chunk_size": 15},
    "preprocessor_conf": {"sample_rate": RATE},
}
RE_SEPFORMER_STRICT = {
    **RE_SEPFORMER,
    "separator_conf": {**RE_SEPFORMER["separator_conf"], "causal": "strict"},
}
S4M = {
    "encoder": "same",
    "separator": "s4m",
    "separator_conf": {
        **{"num_spk": 2, "sample_rate": RATE, "num_repeats": 1, "bottleneck_dim": 16},
        **{"hidden_dim": 16},
    },
    "decoder": "same",
    "preprocessor_conf": {"sample_rate": RATE},
}
SPMAMBA = {
    "encoder": "stft",
    "encoder_conf": STFT,
    "separator": "spmamba",
    "separator_conf": {"num_spk": 2, "n_layers": 1, "emb_dim": 8, "expand": 1, "d_state": 4},
    "decoder": "stft",
    "decoder_conf": STFT,
    "preprocessor_conf": {"sample_rate": RATE},
}
CAUSAL_RNN = {
    "encoder": "stft",
    "encoder_conf": {**STFT, "win_length": 200, "default_fs": RATE},
    "separator": "rnn",
    "separator_conf": {"rnn_type": "lstm", "num_spk": 2, "layer": 1, "unit": 8},
    "decoder": "stft",
    "decoder_conf": {**STFT, "win_length": 200, "default_fs": RATE},
}


def make_experiment(folder: Path, config: dict, **changes: object) -> Path:
    """Write config.yaml and valid.si_snr_loss.best.pth."""
    config = {**config, "best_model_criterion": [["valid", "si_snr_loss", "min"]], **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(0)
    network = build_network(config, "test")
    torch.save(network.state_dict(), folder / "valid.si_snr_loss.best.pth")
    return folder


class Oracle(Separator):
    """Its input has a channel per speaker, its output is the input, shuffled in every chunk.

    With ``num_spk=None`` the identity: two streams, both the mixture.
    """

    def __init__(
        self,
        fs: int,
        chunk: int,
        overlap: int,
        num_spk: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.options = Options("oracle", channels="mix" if num_spk is None else "all")
        self.fs, self.num_spk = fs, num_spk or 2
        self.chunk, self.overlap = chunk, overlap
        self.not_causal, self.streams = "an oracle is not", False
        self.is_identity, self.rng = num_spk is None, rng
        self.orders: list[tuple[int, ...]] = []

    def forward(self, mixture: np.ndarray) -> np.ndarray:
        streams = np.repeat(mixture, 2, 1) if self.is_identity else mixture
        order = np.arange(self.num_spk)
        if self.rng is not None:
            order = self.rng.permutation(order)
        self.orders.append(tuple(order.tolist()))
        return streams.T[order][:, None]


def speech_like(samples: int, fs: int, rng: np.random.Generator, top_hz: float) -> np.ndarray:
    """Noise up to ``top_hz`` with silent ends and a rhythm."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[np.fft.rfftfreq(samples, 1 / fs) > top_hz] = 0
    signal = np.fft.irfft(spectrum, samples) if samples > 1 else np.zeros(samples)
    time = np.linspace(0, np.pi, samples)
    signal *= np.sin(time) ** 2 * (0.6 + 0.4 * np.sin(20 * time))
    return (0.1 * signal / max(np.abs(signal).max(initial=0), 1e-9)).astype(np.float32)


def write_noise(
    path: Path, seconds: float, fs: int = RATE, channels: int = 1, seed: int = 0
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    soundfile.write(path, 0.1 * rng.standard_normal((round(seconds * fs), channels)), fs)
    return path
