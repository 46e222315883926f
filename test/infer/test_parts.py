"""Laws of the parts: overlap-add, chunks, resampling, activity."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sepx_models import speech_like

from espnet2_sepx.infer.activity import ActivityTrack
from espnet2_sepx.infer.chunks import Chunker
from espnet2_sepx.infer.overlap_add import OverlapAdd, fade
from espnet2_sepx.infer.resample import Resampler


@pytest.mark.parametrize("edge", [0, 1, 7, 100])
def test_overlap_add_gives_pieces_that_agree_back(edge):
    rng = np.random.default_rng(edge)
    signal = rng.standard_normal((2, 3, 500)).astype(np.float32)
    ola, out, start = OverlapAdd(2, 3), [], 0
    while ola.end < 500:
        size = int(rng.integers(1, 120))
        ola.add(
            start,
            signal[:, :, start : start + size],
            fade(signal[0, 0, start : start + size].size, edge),
        )
        out.append(ola.pop(start))
        start = int(rng.integers(start, ola.end + 1))
    out.append(ola.pop(500))
    np.testing.assert_allclose(np.concatenate(out, 2), signal, rtol=1e-5, atol=1e-6)


def test_overlap_add_refuses_gaps_and_what_has_left():
    ola = OverlapAdd(1)
    ola.add(0, np.ones((1, 1, 10), np.float32), np.ones(10, np.float32))
    ola.pop(5)
    for start in (4, 11):
        with pytest.raises(ValueError, match=r"start must lie in 5\.\.10"):
            ola.add(start, np.ones((1, 1, 2), np.float32), np.ones(2, np.float32))


def test_fades_overlapped_at_half_add_up_to_one():
    weight = fade(100, 50)
    np.testing.assert_allclose(weight[50:] + weight[:50], 1, atol=1e-3)
    assert fade(1, 5).tolist() == [1.0]


def cut(signal, chunker, rng):
    chunks, start = [], 0
    while start < len(signal):
        size = int(rng.integers(1, 3000))
        chunks += chunker.push(signal[start : start + size])
        start += size
    return chunks + chunker.flush()


@pytest.mark.parametrize("samples", [1, 799, 800, 801, 1000, 5000, 12345])
def test_chunks_cover_the_stream_and_overlap_as_asked(samples):
    rng = np.random.default_rng(samples)
    signal = rng.standard_normal((samples, 2)).astype(np.float32)
    signal[2000:4000] = 0
    chunks = cut(signal, Chunker(800, 200, 600, 1000), rng)
    assert chunks[0].start == 0
    assert chunks[-1].end == samples
    for chunk in chunks:
        np.testing.assert_array_equal(chunk.samples, signal[chunk.start : chunk.end])
        assert len(chunk.samples) == min(800, samples)
    for before, after in itertools.pairwise(chunks[:-1]):
        assert 200 <= before.end - after.start <= 600
    if len(chunks) > 1:
        assert chunks[-2].start < chunks[-1].start <= chunks[-2].end - 200


def test_an_overlap_reaches_back_over_a_pause_to_speech():
    fs = 1000
    signal = 0.1 * np.random.default_rng(0).standard_normal((20 * fs, 1)).astype(np.float32)
    signal[6 * fs : 10 * fs] = 0  # the usual overlap, 6 s to 8 s, falls into it
    first, second, *_ = cut(signal, Chunker(8 * fs, 2 * fs, 7 * fs, fs), np.random.default_rng(1))
    assert first.end - second.start == pytest.approx(2 * fs + 0.5 * fs, abs=20)
    signal[: 6 * fs] = 0  # nothing within reach: no use in reaching
    first, second, *_ = cut(signal, Chunker(8 * fs, 2 * fs, 7 * fs, fs), np.random.default_rng(1))
    assert first.end - second.start == 2 * fs


@pytest.mark.parametrize(
    ("old", "new"), [(8000, 16000), (44100, 8000), (48000, 16000), (11025, 8000)]
)
def test_resampling_in_pieces_is_resampling_whole_and_can_be_undone(old, new):
    rng = np.random.default_rng(old)
    signal = speech_like(old, old, rng, 0.4 * min(old, new))[:, None]
    whole = Resampler(old, new, 1)
    expected = np.concatenate((whole.push(signal), whole.flush()))
    pieces, down, up = [], Resampler(old, new, 1), Resampler(new, old, 1)
    for part in np.split(signal, np.sort(rng.integers(0, old, 9))):
        pieces.append(down.push(part))
    pieces.append(down.flush())
    resampled = np.concatenate(pieces)
    np.testing.assert_allclose(resampled, expected, atol=1e-6)
    assert abs(len(resampled) - new) <= 1
    back = np.concatenate((up.push(resampled), up.flush()))[:old]
    np.testing.assert_allclose(back, signal[: len(back)], atol=1e-5)


def test_a_tone_above_the_new_nyquist_frequency_goes():
    time = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 5000 * time).astype(np.float32)[:, None]
    down = Resampler(16000, 8000, 1)
    left = np.concatenate((down.push(tone), down.flush()))[1000:-1000]
    assert np.abs(left).max() < 1e-5


def test_activity_finds_turns_and_forgives_leaks():
    fs = 8000
    rng = np.random.default_rng(0)
    streams = 1e-4 * rng.standard_normal((2, 1, 10 * fs)).astype(np.float32)
    voice = 0.1 * rng.standard_normal(10 * fs).astype(np.float32)
    for start, end in ((1, 3), (3.1, 4)):  # the pause of 0.1 s is bridged
        part = slice(round(start * fs), round(end * fs))
        streams[0, 0, part] += voice[part]
        streams[1, 0, part] += 0.05 * voice[part]  # a leak of -26 dB
    streams[1, 0, 6 * fs : 7 * fs] += voice[6 * fs : 7 * fs]
    track = ActivityTrack(fs)
    for part in np.array_split(streams, 13, axis=2):
        track.push(part)
    first, second = track.turns()
    np.testing.assert_allclose(first, [(1, 4)], atol=0.02)
    np.testing.assert_allclose(second, [(6, 7)], atol=0.02)


def test_activity_of_nothing_and_of_silence_is_none():
    track = ActivityTrack(8000)
    track.push(np.zeros((2, 1, 0), np.float32))
    assert track.turns() == [[], []] or track.turns() == []
    track.push(np.zeros((2, 1, 9000), np.float32))
    assert track.turns() == [[], []]
