"""Look-ahead of signal processing with known look-ahead."""

import pytest
import torch
import torch.nn.functional as F
from profiling_configs import conv_config

from espnet2_sepx.profiling.inputs import noise
from espnet2_sepx.profiling.latency import algorithmic_latency


def ahead(samples):
    return lambda x: [F.pad(x, (0, samples))[:, samples:], x]


def framewise(x):
    """Each frame of 10 is scaled by its level: the first sample of a frame waits for the last."""
    frames = x.unflatten(1, (-1, 10))
    return [(frames * frames.square().mean(-1, keepdim=True)).flatten(1)]


@pytest.mark.parametrize(
    ("run", "latency"),
    [
        (ahead(0), 0),
        (ahead(37), 37),
        (framewise, 9),
        (lambda x: [x / x.std()], None),
        (lambda x: [x.flip(1)], None),
    ],
)
def test_known_latencies(run, latency):
    assert algorithmic_latency(run, noise(1000)) == latency


@pytest.mark.parametrize(("causal", "latency"), [(True, 15), (False, 15 + 8 * (1 + 2))])
def test_frames_of_a_convolutional_encoder(causal, latency):
    """Frames of 16, hop 8: a sample waits for its frame, and for those the layers see ahead."""
    from espnet2_sepx.profiling.model import build_model, separate

    options = {"layer": 2, "stack": 1, "bottleneck_dim": 8, "hidden_dim": 8, "kernel": 3}
    model = build_model(conv_config("tcn", **options, causal=causal, norm_type="cLN"))
    with torch.no_grad():
        found = algorithmic_latency(lambda x: separate(model, x, 8000), noise(1600))
    assert found == latency
