"""Configurations for tests, as dictionaries with the content of a YAML file."""

from itertools import pairwise

# Specification of the baseline: 20 bands of 200 Hz, 6 of 500 Hz, 1 of 1 kHz, at 31.25 Hz per bin.
BSRNN_EDGES = [-1, 6, 12, 19, 25, 32, 38, 44, 51, 57, 64, 70, 76, 83, 89, 96, 102, 108, 115, 121]
BSRNN_EDGES += [128, 144, 160, 176, 192, 208, 224, 256]


def stft_config(separator, n_fft=512, hop_length=128, **options):
    transform = {"n_fft": n_fft, "hop_length": hop_length}
    return {
        "encoder": "stft",
        "encoder_conf": {**transform, "use_builtin_complex": True},
        "decoder": "stft",
        "decoder_conf": transform,
        "separator": separator,
        "separator_conf": {"num_spk": 2, **options},
    }


def conv_config(separator, window=16, **options):
    filterbank = {"channel": 16, "kernel_size": window, "stride": window // 2}
    return {
        "encoder": "conv",
        "encoder_conf": filterbank,
        "decoder": "conv",
        "decoder_conf": filterbank,
        "separator": separator,
        "separator_conf": {"num_spk": 2, **options},
    }


def bsrnn_config():
    """ESPnet's BSRNN at the size of the paper's Table 1."""
    bands = [[last + 1, end] for last, end in pairwise(BSRNN_EDGES)]
    return stft_config("bsrnn", num_channels=44, num_layers=6, target_fs=16000, subbands=bands)


def small_tcn():
    return conv_config("tcn", layer=2, stack=1, bottleneck_dim=8, hidden_dim=8)


def small_tf_moe(**options):
    sizes = {"num_channels": 8, "num_blocks": 1, "num_bands": 6, "sample_rate": 8000, "head_dim": 4}
    return stft_config("tf_moe", n_fft=128, hop_length=64, **{**sizes, **options})
