import numpy as np
import pytest

from espnet2_sepx.data.overlap import active_span, activity, delay_for_overlap, overlap_ratio

FS = 8000


def bursts(*spans_s: tuple[float, float], seconds: float) -> np.ndarray:
    """Noise in the given spans, silence elsewhere."""
    noise = np.random.default_rng(0).standard_normal(round(seconds * FS)) * 0.1
    gate = np.zeros_like(noise)
    for start, stop in spans_s:
        gate[round(start * FS) : round(stop * FS)] = 1
    return noise * gate


def test_nothing_is_active_in_silence():
    assert not activity(np.zeros(FS), FS).any()
    assert active_span(np.zeros(FS), FS) == (0, 0)
    assert activity(np.zeros(0), FS).shape == (0,)


def test_a_burst_is_found_within_a_frame():
    start, stop = active_span(bursts((0.5, 1.2), seconds=2), FS)
    assert start / FS == pytest.approx(0.5, abs=0.021)
    assert stop / FS == pytest.approx(1.2, abs=0.021)


def test_activity_does_not_depend_on_the_level():
    signal = bursts((0.2, 0.9), (1.5, 1.8), seconds=2)
    assert np.array_equal(activity(signal, FS), activity(signal * 1e-3, FS))


@pytest.mark.parametrize(("pause_s", "bridged"), [(0.15, True), (0.4, False)])
def test_short_pauses_belong_to_the_speech(pause_s, bridged):
    signal = bursts((0.0, 0.5), (0.5 + pause_s, 1.5), seconds=1.5)
    assert activity(signal, FS).all() == bridged


def test_faint_background_is_not_active():
    signal = bursts((0.0, 1.0), seconds=2)
    background = np.random.default_rng(1).standard_normal(len(signal)) * 0.1 * 10 ** (-30 / 20)
    assert activity(signal + background, FS).mean() == pytest.approx(0.5, abs=0.02)


def test_overlap_of_a_signal_with_itself_is_one_and_with_silence_none():
    signal = bursts((0.1, 0.8), seconds=1)
    assert overlap_ratio(signal, signal, FS) == 1.0
    assert overlap_ratio(signal, np.zeros_like(signal), FS) == 0.0
    assert overlap_ratio(np.zeros(FS), np.zeros(FS), FS) == 0.0


def test_overlap_is_shared_time_over_any_time_and_symmetric():
    first, second = bursts((0, 2), seconds=3), bursts((1, 3), seconds=3)
    assert overlap_ratio(first, second, FS) == pytest.approx(1 / 3, abs=0.02)
    assert overlap_ratio(first, second, FS) == overlap_ratio(second, first, FS)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.6])
def test_the_delay_reaches_the_ratio(ratio):
    first = bursts((0.0, 0.9), (1.3, 3.0), seconds=3.0)
    second = bursts((0.0, 2.5), seconds=2.5)
    delay = delay_for_overlap(first, second, FS, ratio)
    length = max(len(first), delay + len(second))
    placed = [np.zeros(length), np.zeros(length)]
    placed[0][: len(first)] = first
    placed[1][delay : delay + len(second)] = second
    assert overlap_ratio(*placed, FS) == pytest.approx(ratio, abs=0.02)


def test_an_impossible_ratio_gives_the_nearest():
    """A 1 s signal over a 4 s one overlaps by a quarter at most."""
    first, second = bursts((0, 4), seconds=4), bursts((0, 1), seconds=1)
    assert delay_for_overlap(first, second, FS, 1.0) == 0
