"""Partial overlap and partial noise made from full ones."""

import numpy as np
import pytest

from espnet2_sepx.data.overlap import active_span, activity
from espnet2_sepx.data.partial import (
    delayed_to_overlap,
    overlap_of_spans,
    start_with_speech,
    windowed_noise,
)
from espnet2_sepx.data.preprocessor import SeparationPreprocessor

FS = 8000


def speech(seconds, start, stop, seed=0):
    """Noise between two times, silence elsewhere."""
    signal = np.zeros(round(seconds * FS), dtype=np.float32)
    span = slice(round(start * FS), round(stop * FS))
    signal[span] = np.random.default_rng(seed).normal(size=span.stop - span.start)
    return signal


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
@pytest.mark.parametrize(("first", "second"), [((0.1, 3.9), (0.4, 3.0)), ((0.5, 1.5), (0.0, 4.0))])
def test_overlap_is_as_asked(ratio, first, second):
    leading, following = speech(4, *first), speech(4, *second, seed=1)
    one, two = delayed_to_overlap(leading, following, FS, ratio)
    tolerance = 0.02  # two blocks of the detector; the shorter speech has 100
    assert overlap_of_spans(one, two, FS) == pytest.approx(ratio, abs=tolerance)
    assert len(one) == len(two) > len(leading)
    assert np.array_equal(one[: len(leading)], leading)
    assert np.array_equal(two[-len(following) :], following)


def test_full_overlap_is_the_mixture_as_it_is():
    signals = speech(4, 0.1, 3.9), speech(4, 0.4, 3.0, seed=1)
    for before, after in zip(signals, delayed_to_overlap(*signals, FS, 1.0), strict=True):
        assert np.array_equal(before, after)


def test_noise_is_kept_in_one_window():
    rng = np.random.default_rng(0)
    noise = np.ones(1000, dtype=np.float32)
    for share in (0.0, 0.3, 1.0):
        kept = np.flatnonzero(windowed_noise(noise, share, rng))
        assert len(kept) == round(share * 1000)
        assert not len(kept) or kept[-1] - kept[0] == len(kept) - 1


def test_a_segment_has_speech_of_both():
    """Only a third of the starts would do."""
    signals = [speech(9, 0.0, 4.0), speech(9, 3.0, 9.0, seed=1)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        start = start_with_speech(signals, FS, FS, rng)
        least = min(activity(signal[start : start + FS], FS).sum() for signal in signals)
        assert least >= 45  # of 100 blocks of 10 ms


def test_where_nobody_meets_the_segment_is_still_found():
    signals = [speech(9, 0.0, 1.0), speech(9, 8.0, 9.0, seed=1)]
    start = start_with_speech(signals, FS, FS, np.random.default_rng(0))
    assert 0 <= start <= 8 * FS


def example(**signals):
    return {**signals, "speech_mix": np.sum(list(signals.values()), 0)}


def test_training_examples_have_the_overlap_and_the_noise_asked_for():
    preprocess = SeparationPreprocessor(
        True, sample_rate=FS, overlap_ratio=[0.3, 0.3], noise_activity=[0.5, 0.5]
    )
    data = example(
        speech_ref1=speech(4, 0.1, 3.9),
        speech_ref2=speech(4, 0.1, 3.9, seed=1),
        noise_ref1=np.ones(4 * FS, dtype=np.float32),
    )
    leaders = set()
    for number in range(20):
        new = preprocess(f"utt{number}", data)
        one, two, noise = (new[name] for name in ("speech_ref1", "speech_ref2", "noise_ref1"))
        assert overlap_of_spans(one, two, FS) == pytest.approx(0.3, abs=0.01)
        assert np.count_nonzero(noise) == round(0.5 * len(noise))
        assert np.allclose(new["speech_mix"], one + two + noise, atol=1e-6)
        leaders.add(active_span(one, FS) < active_span(two, FS))
    assert leaders == {True, False}


def test_validation_is_left_alone():
    preprocess = SeparationPreprocessor(False, overlap_ratio=[0.3, 0.3])
    data = example(speech_ref1=speech(4, 0, 4), speech_ref2=speech(4, 0, 4, seed=1))
    assert preprocess("utt", data) is data


@pytest.mark.parametrize(
    "options",
    [
        {"overlap_ratio": [0.5]},
        {"overlap_ratio": [0.5, 0.2]},
        {"noise_activity": [0.0, 1.5]},
        {"overlap_ratio": [0.5, 1.0], "num_spk": 3},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SeparationPreprocessor(True, **options)
