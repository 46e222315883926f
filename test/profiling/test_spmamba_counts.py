"""SPMamba against hand counts (sections 3 and 4 of its specification), 512-point frames, hop 128.

Per frame of F bins a path over frequency has F - 7 windows; the path over time has T - 7 per bin.
"""

import pytest

from espnet2_sepx.profiling.inputs import noise
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.model import build_model, separate

F, D, S, BLOCKS, WINDOW = 257, 16, 2, 6, 8
C, INNER, STATES, RANK, TAPS, HIDDEN = 128, 512, 16, 8, 4, 256
ONE_SECOND = 126  # frames
FFT_512 = 512 * 9

IN_PROJ, DT_PROJ = C * 2 * INNER, RANK * INNER
MIXER = IN_PROJ + INNER * TAPS + INNER * (RANK + 2 * STATES) + DT_PROJ + INNER * C
SCAN = INNER * (3 * STATES + 2)
BLSTM = 2 * 4 * HIDDEN * (C + HIDDEN)


def windows(frames):
    return {"f": frames * (F - WINDOW + 1), "t": F * (frames - WINDOW + 1)}


def products(frames, f_module="mamba", t_module="mamba", blocks=BLOCKS):
    """Everything but scans and Fourier transforms, per input."""
    total = frames * F * 9 * (2 * D + D * 2 * S)
    for axis, kind in (("f", f_module), ("t", t_module)):
        per_window = 2 * MIXER + 2 * C * D * WINDOW
        if kind == "blstm":
            per_window = BLSTM + 2 * HIDDEN * D * WINDOW
        total += blocks * windows(frames)[axis] * per_window
    heads = frames * F * D * (2 * 4 * 2 + D) + frames * F * D * D  # queries, keys, values; output
    scores = frames * frames * F * (4 * 2 + D)
    return total + blocks * (heads + scores)


def scans(frames, f_module="mamba", t_module="mamba", blocks=BLOCKS):
    steps = windows(frames)
    kinds = {"f": f_module, "t": t_module}
    return blocks * 2 * SCAN * sum(steps[axis] for axis in "ft" if kinds[axis] == "mamba")


@pytest.mark.parametrize(
    ("modules", "giga_products", "giga_scans"),
    [
        (("mamba", "mamba"), 179.28, 19.07),
        (("mamba", "blstm"), 247.7, 9.7),
        (("blstm", "mamba"), 249.7, 9.4),
        (("blstm", "blstm"), 318.1, 0.0),
    ],
)
def test_hand_counts_are_those_of_the_specification(modules, giga_products, giga_scans):
    assert products(ONE_SECOND, *modules) / 1e9 == pytest.approx(giga_products, abs=0.06)
    assert scans(ONE_SECOND, *modules) / 1e9 == pytest.approx(giga_scans, abs=0.06)
    if modules == ("mamba", "mamba"):
        complete = products(ONE_SECOND) + scans(ONE_SECOND)
        assert complete / 1e9 == pytest.approx(198.35, abs=0.01)


@pytest.mark.parametrize("modules", [("mamba", "mamba"), ("mamba", "blstm"), ("blstm", "mamba")])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_counter_equals_the_hand_count(modules, backend):
    frames, blocks = 9, 2
    stft = {"n_fft": 512, "win_length": 512, "hop_length": 128}
    names = dict(zip(("f_module", "t_module"), modules, strict=True))
    model = build_model(
        {
            "encoder_conf": stft,
            "decoder_conf": stft,
            "separator": "spmamba",
            "separator_conf": {**names, "n_layers": blocks, "scan_backend": backend},
        }
    )
    mixture = noise((frames - 1) * 128)
    count = count_macs(model, lambda: separate(model, mixture, 16000))
    transforms = frames * (1 + S) * FFT_512
    scanned = scans(frames, *modules, blocks)
    assert count.total.all == products(frames, *modules, blocks) + scanned + transforms
    assert count.by_operator()["espnet2_sepx.selective_scan"].all == scanned
    assert not count.uncounted


def test_figure_of_the_paper():
    """238.69 G = what ptflops sees + what the published script adds by hand.

    ptflops counts layers called as modules (not in_proj, dt_proj and the scan, which are called
    as functions), with biases and activations; padded and transposed convolutions at their output.
    The script adds scans as if all 24 ran over frequency, at 9 FLOPs per state and 2 per channel
    and step, and MACs of the two projections.
    """
    steps, frames = windows(ONE_SECOND), ONE_SECOND
    runs, sequences = 2 * BLOCKS * sum(steps.values()), 2 * BLOCKS * (frames + F)
    seen = runs * (MIXER - IN_PROJ - DT_PROJ - INNER * TAPS)
    seen += (runs + sequences * (TAPS - 1)) * INNER * (TAPS + 1) + runs * INNER
    seen += 2 * BLOCKS * frames * F * D * (2 * C * WINDOW + 1)
    seen += BLOCKS * frames * F * (4 * (2 + 2 + 4) + D) * (D + 2)
    seen += frames * F * (D * (9 * 2 + 1) + 2 * S * (9 * D + 1) + 2 * D)
    added = 24 * (9 * STATES + 2) * INNER * steps["f"] + 24 * (4.12e9 + 0.12e9)
    assert seen / 1e9 == pytest.approx(79.41, abs=0.1)
    assert added / 1e9 == pytest.approx(158.27, abs=0.02)
    assert (seen + added) / 1e9 == pytest.approx(237.7, abs=0.1)
