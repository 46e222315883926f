"""Streams stay with their speakers, at every joint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from sepx_models import Oracle

from espnet2_sepx.data.conversation import conversation
from espnet2_sepx.infer.align import Aligner, best_order, match_channels
from espnet2_sepx.infer.resample import Resampler

FS = 8000


def voice(pitch_hz: float, formant_hz: float, seconds: float, seed: int) -> np.ndarray:
    """Something periodic with a formant and syllables."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * FS)) / FS
    pitch = pitch_hz * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / FS
    signal = np.zeros_like(time)
    for k in range(1, int(3500 / pitch_hz)):
        gain = 1 / (1 + ((k * pitch_hz - formant_hz) / 300) ** 2)
        signal += (gain + 0.02 / k) * np.sin(k * phase)
    return (
        0.1 * signal * np.clip(np.sin(2 * np.pi * 3 * time + rng.uniform(0, 6)), 0, None)
    ).astype(np.float32)


@pytest.mark.parametrize("streams", [1, 2, 3, 5])
def test_the_overlap_tells_the_order(streams):
    rng = np.random.default_rng(streams)
    signals = 0.1 * rng.standard_normal((streams, 1, 2 * FS)).astype(np.float32)
    order = rng.permutation(streams)
    aligner = Aligner(streams, FS)
    aligner.learn(signals[:, :, :FS])
    joint = aligner.join(signals[:, :, FS // 2 : FS], signals[order, :, FS // 2 :], FS // 2)
    assert [order[i] for i in joint.order] == list(range(streams))
    assert joint.confidence > 0.99
    assert joint.by == "overlap"
    assert not joint.is_doubtful
    assert joint.time_s == 0.5


def test_what_all_streams_share_does_not_mislead():
    rng = np.random.default_rng(0)
    common, a, b = 0.1 * rng.standard_normal((3, FS)).astype(np.float32)
    streams = np.stack((common + 0.2 * a, common + 0.2 * b))[:, None]
    aligner = Aligner(2, FS)
    aligner.learn(streams)
    joint = aligner.join(streams, streams[::-1], 0)
    assert joint.order == (1, 0)
    assert joint.confidence > 0.99


def test_voices_tell_where_the_overlap_is_silent():
    silence = np.zeros((2, 1, FS), np.float32)
    aligner = Aligner(2, FS)
    aligner.learn(np.stack((voice(110, 600, 3, 1), voice(210, 1700, 3, 2)))[:, None])
    for seed, swapped in ((3, False), (5, True), (7, True)):
        new = np.stack((voice(110, 600, 3, seed), voice(210, 1700, 3, seed + 1)))[:, None]
        chunk = np.concatenate((silence, new[::-1] if swapped else new), 2)
        joint = aligner.join(silence, chunk, 0)
        assert joint.by == "voices"
        assert joint.order == ((1, 0) if swapped else (0, 1))
        assert 0.9 < joint.confidence < 1


def test_one_voice_alone_is_told_from_the_other():
    aligner = Aligner(2, FS)
    aligner.learn(np.stack((voice(110, 600, 3, 1), voice(210, 1700, 3, 2)))[:, None])
    chunk = np.stack((voice(210, 1700, 3, 8), np.zeros(3 * FS, np.float32)))[:, None]
    joint = aligner.join(np.zeros((2, 1, FS), np.float32), chunk, 0)
    assert (joint.order, joint.by) == ((1, 0), "voices")


def test_silence_is_joined_as_it_comes_and_doubted():
    aligner = Aligner(2, FS)
    silence = np.zeros((2, 1, FS), np.float32)
    aligner.learn(silence)
    joint = aligner.join(silence, silence, FS)
    assert (joint.order, joint.by, joint.confidence) == ((0, 1), "nothing", 0.5)
    assert joint.is_doubtful
    assert joint.as_dict() == {
        **{"time_s": 1.0, "overlap_s": 1.0, "order": (0, 1), "by": "nothing", "confidence": 0.5}
    }


def test_best_order_leads_by_its_distance_to_the_next():
    odds = np.array([[1.0, 5.0, 0.0], [4.0, 0.0, 1.0], [0.0, 0.0, 2.0]])
    order, lead = best_order(odds)
    assert order == (1, 0, 2)
    assert lead == 11 - max(5 + 1 + 0, 1 + 0 + 2, 0 + 4 + 0)


def test_channels_are_matched_though_delayed_and_shuffled():
    rng = np.random.default_rng(0)
    streams = np.stack((voice(110, 600, 2, 1), voice(210, 1700, 2, 2)))
    delayed = np.roll(streams, 9, axis=1)[::-1] + 0.001 * rng.standard_normal(streams.shape)
    matched = match_channels([streams, delayed.astype(np.float32)])
    assert matched.shape == (2, 2, 2 * FS)
    np.testing.assert_array_equal(matched[:, 0], streams)
    np.testing.assert_array_equal(matched[:, 1], delayed[::-1].astype(np.float32))


# --- an hour of two people ------------------------------------------------------------------------


def speaker(folder: Path) -> list[np.ndarray]:
    """All utterances of a speaker, at the rate used here and at one level."""
    utterances = []
    for path in sorted(folder.glob("*.flac")):
        signal, rate = soundfile.read(path, dtype="float32", always_2d=True)
        down = Resampler(rate, FS, 1)
        signal = np.concatenate((down.push(signal), down.flush()))[:, 0]
        utterances.append(signal * (0.05 / np.sqrt(np.mean(signal**2))))
    return utterances


def swaps(references: np.ndarray, chunk_s: float, overlap_s: float, seed: int) -> tuple[list, list]:
    """Joints of a shuffled oracle, and those among them at which speakers change streams."""
    oracle = Oracle(FS, round(chunk_s * FS), round(overlap_s * FS), 2, np.random.default_rng(seed))
    session = oracle.start(FS, 2)
    for start in range(0, references.shape[1], FS):
        session.push(references[:, start : start + FS].T)
    session.flush()
    joints, state, wrong = session.engine.joints, oracle.orders[0], []
    for joint, shuffled in zip(joints, oracle.orders[1:], strict=True):
        order = tuple(shuffled[i] for i in joint.order)
        wrong += [joint] if order != state else []
        state = order
    return joints, wrong


def test_minutes_of_a_conversation_without_a_swap():
    people = [
        [voice(110, 600, 2.5, s) for s in (1, 2, 3)],
        [voice(210, 1700, 2.5, s) for s in (4, 5, 6)],
    ]
    references = conversation(people, 300, FS, np.random.default_rng(0))
    joints, wrong = swaps(references, 12, 3, 1)
    assert len(joints) > 30
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("so7001", "so2488"), ("so9645", "so9639")])
def test_an_hour_of_real_speech_without_a_swap(shared_data, pair):
    people = [speaker(shared_data / "speech/test" / name) for name in pair]
    references = conversation(people, 3600, FS, np.random.default_rng(0))
    joints, wrong = swaps(references, 12, 3, 1)
    print(f"{pair}: {len(joints)} joints, {sum(j.is_doubtful for j in joints)} doubtful")
    assert len(joints) > 400
    assert wrong == []
