"""S4M against hand counts: layers with weights, Fourier transforms, kernels.

At 16 kHz: widths WIDTH and H, F filters of K taps, S states, B repeats, D directions.
"""

from math import ceil, log2

import pytest

from espnet2_sepx.profiling.inputs import noise
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.model import build_model, separate

WIDTH, H, F, K, B, D = 128, 512, 33, 64, 16, 2
FRAMES = {16000: (1010, 505, 253, 127), 4001: (258, 129, 65, 33)}
POINTS = {1010: 2048, 505: 1024, 253: 512, 127: 256, 258: 540, 129: 270, 65: 144, 33: 72}


def layers(frames, decoder, mid=True):
    """Convolutions and linear layers with products over more than one number.

    Depthwise convolutions of one tap are not among them: they are multiplications by element.
    """
    outside = frames[0] * (F * K + F * WIDTH + WIDTH * 2 * F + 2 * F * 2 * K)
    per_frame = 2 * WIDTH * H * frames[0] + 5 * H * sum(frames)  # proj, res; down
    per_frame += 5 * H * sum(frames[:3]) + 2 * 5 * H * sum(frames[1:])  # local attention going up
    mixing = frames[3] * (2 * H * H + 4 * H * H) if mid else 0
    mixing += sum(frames[:3]) * 2 * H * H if decoder else 0
    return outside + B * (per_frame + mixing)


def fft(points):
    return ceil(points * log2(points)) * H


def convolutions(lengths):
    """Two transforms and a complex product for each repeat."""
    return B * sum(2 * fft(POINTS[n]) + 4 * (POINTS[n] // 2 + 1) * H for n in lengths)


def kernels(lengths, states):
    """Once: doublings of rows and columns, the squares they need, their product, a transform."""
    total = 0
    for length in lengths:
        doublings = ceil(log2(length) / 2)
        rows = 2**doublings
        columns = ceil(length / rows)
        column_doublings = ceil(log2(columns))
        squares = (doublings + column_doublings - 1) * states**3
        doubled = (D * (rows - 1) + 2**column_doublings - 1) * states**2
        total += H * (squares + doubled + D * rows * states * columns) + fft(POINTS[length])
    return total


def counted(samples=16000, **options):
    config = {"encoder": "same", "decoder": "same", "separator": "s4m", "separator_conf": options}
    model = build_model(config)
    count = count_macs(model, lambda: separate(model, noise(samples), 16000))
    assert not count.uncounted
    return count.total


@pytest.mark.parametrize(
    ("options", "samples", "published"),
    [
        ({}, 16000, 5.68e9),
        ({"state_dim": 32}, 4001, None),
        ({"decoder_s4": True}, 16000, 21.59e9),
        ({"decoder_s4": True}, 4001, None),
        ({"mid": "none"}, 16000, 2.39e9),
    ],
    ids=str,
)
def test_s4m(options, samples, published):
    frames = FRAMES[samples]
    decoder, mid = "decoder_s4" in options, "mid" not in options
    lengths = [*(frames[:3] if decoder else ()), *(frames[3:] if mid else ())]
    expected = layers(frames, decoder, mid)
    expected += convolutions(lengths) + kernels(lengths, options.get("state_dim", 16))
    found = counted(samples, **options)
    assert found.all == expected
    if published is not None:
        # the specification counts transforms at 5/4 of ours, further work on kernels, and one-tap
        # convolutions
        assert found.all == pytest.approx(published, rel=0.02)
