"""Metrics obey their laws and agree with the tools the papers used."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.signal import lfilter

from espnet2_sepx.errors import UserError
from espnet2_sepx.score import metrics
from espnet2_sepx.score.metrics import MAX_DB, METRICS, Unscorable, choose_metrics, compute

RATE = 8000


@pytest.fixture
def pair(speech):
    reference = speech(0)
    return reference, reference + 0.3 * speech(1) + 0.01 * speech(2)


# --- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [1e-6, -3.0])
@pytest.mark.parametrize("name", ["si_snr", "sdr"])
def test_the_level_and_sign_of_an_estimate_do_not_matter(pair, name, gain):
    reference, estimate = pair
    assert compute(name, reference, gain * estimate, RATE) == pytest.approx(
        compute(name, reference, estimate, RATE), abs=1e-6
    )


def test_si_snr_of_orthogonal_noise_is_the_power_ratio():
    n = np.arange(8000)
    reference, noise = np.sin(2 * np.pi * n / 80), np.sin(2 * np.pi * n / 40)
    assert metrics.si_snr(reference, reference + 0.1 * noise + 0.7) == pytest.approx(20, abs=1e-6)


def test_a_perfect_estimate_reaches_the_ceiling(pair):
    reference, _ = pair
    assert metrics.si_snr(reference, 2 * reference) == pytest.approx(MAX_DB, abs=1e-9)
    assert metrics.sdr(reference, 2 * reference) == pytest.approx(MAX_DB, abs=1e-3)


def test_only_sdr_forgives_a_short_filter(pair):
    reference = np.pad(pair[0], (0, 3))  # the filter's tail belongs to the signal
    filtered = lfilter([0.0, 0.5, 0.3, -0.4], [1.0], reference)
    assert metrics.sdr(reference, filtered) > 50
    assert metrics.si_snr(reference, filtered) < 10


@pytest.mark.parametrize("name", METRICS)
def test_more_noise_is_worse(pair, name):
    reference, _ = pair
    noise = np.random.default_rng(0).standard_normal(len(reference))
    good, bad = (compute(name, reference, reference + g * noise, RATE) for g in (0.002, 0.05))
    assert good > bad


def test_inputs_are_not_changed(pair):
    reference, estimate = pair
    before = reference.copy(), estimate.copy()
    for name in METRICS:
        compute(name, reference, estimate, RATE)
    np.testing.assert_array_equal(before, (reference, estimate))


# --- oracles -------------------------------------------------------------------------------------


def test_si_snr_agrees_with_torchmetrics(pair):
    torch = pytest.importorskip("torch")
    audio = pytest.importorskip("torchmetrics.functional.audio")
    reference, estimate = (torch.from_numpy(signal + 0.05) for signal in pair)
    oracle = audio.scale_invariant_signal_distortion_ratio(estimate, reference, zero_mean=True)
    assert metrics.si_snr(reference.numpy(), estimate.numpy()) == pytest.approx(oracle.item(), 1e-6)


def test_sdr_agrees_with_mir_eval(pair):
    separation = pytest.importorskip("mir_eval.separation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        oracle = separation.bss_eval_sources(pair[0], pair[1], compute_permutation=False)[0]
    assert metrics.sdr(*pair) == pytest.approx(oracle[0], abs=1e-4)


def test_sdr_does_not_depend_on_the_other_references(speech):
    """BSSEval v3: mir_eval with all references says the same as one reference alone."""
    separation = pytest.importorskip("mir_eval.separation")
    references = np.stack([speech(0), speech(1)])
    estimates = references + 0.2 * references[::-1] + 0.01 * speech(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        oracle = separation.bss_eval_sources(references, estimates, compute_permutation=False)[0]
    ours = [metrics.sdr(r, e) for r, e in zip(references, estimates, strict=True)]
    np.testing.assert_allclose(ours, oracle, atol=1e-4)


@pytest.mark.parametrize(("rate", "mode"), [(8000, "nb"), (16000, "wb")])
def test_pesq_uses_the_band_of_the_rate(speech, rate, mode):
    itu = pytest.importorskip("pesq")
    reference = speech(0, rate=rate)
    estimate = reference + 0.2 * speech(1, rate=rate)
    assert metrics.pesq(reference, estimate, rate) == itu.pesq(rate, reference, estimate, mode)


@pytest.mark.parametrize("extended", [False, True])
def test_stoi_is_that_of_pystoi(pair, extended):
    pystoi = pytest.importorskip("pystoi")
    oracle = pystoi.stoi(*pair, RATE, extended=extended)
    assert metrics.stoi(*pair, RATE, extended) == pytest.approx(oracle, abs=1e-9)


# --- what has no score ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ((0, lambda x: np.zeros_like(x)), "silent reference"),
        ((0, lambda x: np.full_like(x, 0.5)), "silent reference"),
        ((0, lambda x: 1e-6 * x), "silent reference"),
        ((1, lambda x: np.zeros_like(x)), "silent estimate"),
        # what ESPnet writes when it normalises a silent output (0 / 0 as 16-bit samples)
        ((1, lambda x: np.full_like(x, -1.0)), "silent estimate"),
        ((1, lambda x: np.where(np.arange(len(x)) == 7, np.nan, x)), "not finite estimate"),
        ((0, lambda x: np.where(np.arange(len(x)) == 7, np.inf, x)), "not finite reference"),
    ],
)
def test_defective_signals_have_no_score_in_any_metric(pair, name, spoil, reason):
    signals = list(pair)
    which, change = spoil
    signals[which] = change(signals[which])
    with pytest.raises(Unscorable, match=reason):
        compute(name, *signals, RATE)


@pytest.mark.parametrize(
    ("name", "seconds", "reason"),
    [
        ("sdr", 0.1, "shorter than 1024 samples"),
        ("stoi", 0.3, "less than 30 frames"),
        ("estoi", 0.02, "less than 30 frames"),
        ("pesq", 0.2, "1/4 of a second"),
        ("pesq", 20.5, "longer than 20 s"),
    ],
)
def test_lengths_without_a_score(name, seconds, reason):
    noise = np.random.default_rng(0).standard_normal((2, int(seconds * RATE)))
    with pytest.raises(Unscorable, match=reason):
        compute(name, noise[0], noise[0] + 0.1 * noise[1], RATE)


def test_pesq_without_utterances_is_unscorable_not_an_error_code():
    rng = np.random.default_rng(0)
    bursts = np.resize(np.concatenate([rng.standard_normal(800), np.zeros(2000)]), 2 * RATE)
    with pytest.raises(Unscorable, match="No utterances"):
        metrics.pesq(bursts, bursts + 0.1 * rng.standard_normal(len(bursts)), RATE)


def test_unequal_lengths_are_a_programming_error(pair):
    with pytest.raises(ValueError, match="equally long"):
        metrics.si_snr(pair[0], pair[1][1:])


# --- choice of metrics ---------------------------------------------------------------------------


def test_default_is_everything_possible(monkeypatch):
    assert choose_metrics(None, 8000)[0] == list(METRICS)
    names, skipped = choose_metrics(None, 44100)
    assert "pesq" not in names
    assert "44100 Hz" in skipped["pesq"]


def test_a_missing_package_is_skipped_by_default_and_an_error_when_asked_for(monkeypatch):
    found = metrics.importlib.util.find_spec
    monkeypatch.setattr(
        metrics.importlib.util, "find_spec", lambda name: None if name == "pesq" else found(name)
    )
    names, skipped = choose_metrics(None, 8000)
    assert "pesq" not in names
    assert 'pip install "espnet2_sepx[pesq]"' in skipped["pesq"]
    with pytest.raises(UserError, match=r"espnet2_sepx\[pesq\]"):
        choose_metrics(["si_snr", "pesq"], 8000)


def test_an_unknown_metric_is_named():
    with pytest.raises(UserError, match="'sisnr'"):
        choose_metrics(["sisnr"], 8000)
