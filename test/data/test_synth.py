import itertools

import numpy as np
import pytest

from espnet2_sepx.data.synth import (
    VARIANTS,
    Utterance,
    draw_speakers,
    draw_utterance,
    synthesize,
)
from espnet2_sepx.errors import UserError

FS = 8000
TEXT = "Whose fox hid the six ships, while she laughed?"


def say(variant: str, text: str = TEXT, pitch: int = 50, warp: float = 1.0) -> np.ndarray:
    return synthesize(Utterance(f"en-us+{variant}", pitch, 180, 1, warp, text), FS)


def pitch_hz(signal: np.ndarray) -> float:
    """Median over the louder frames of 64 ms of the strongest autocorrelation lag, 60-400 Hz."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, 512)[::128]
    power = (frames**2).sum(1)
    frames = frames[power > np.median(power)] * np.hanning(512)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 1024)) ** 2)
    lags = np.arange(FS // 400, FS // 60)
    # Windowing shrinks long lags; undone, else half the period wins.
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(512), 1024)) ** 2)
    best = np.argmax(correlation[:, lags] / window[lags], axis=1)
    return float(np.median(FS / lags[best]))


@pytest.fixture(scope="module")
def all_variants():
    return [v for kinds in VARIANTS.values() for names in kinds.values() for v in names]


def test_speech_depends_on_its_description_alone(all_variants):
    """Whatever was said before, and although espeak-ng keeps state of its own."""
    forward = {variant: say(variant) for variant in all_variants}
    for variant in reversed(all_variants):
        assert np.array_equal(say(variant), forward[variant]), variant


def test_every_voice_is_audible_and_does_not_clip(all_variants):
    for variant in all_variants:
        speech = say(variant)
        assert 1.5 < len(speech) / FS < 6, variant
        assert 0.02 < np.abs(speech).max() < 1.0, variant
        assert 0.003 < speech.std() < 0.3, variant


def test_a_voice_belongs_to_one_set_only():
    voices = {name: {*kinds["low"], *kinds["high"]} for name, kinds in VARIANTS.items()}
    for first, second in itertools.combinations(voices, 2):
        assert not voices[first] & voices[second]


def test_speakers_are_drawn_from_their_set_with_different_names():
    for name, kinds in VARIANTS.items():
        speakers = draw_speakers(name, 40, seed=3)
        assert len({speaker.name for speaker in speakers}) == 40
        assert {s.voice.split("+")[1] for s in speakers} <= {*kinds["low"], *kinds["high"]}


def test_speakers_and_sentences_follow_the_seed():
    def texts(seed: int) -> list[Utterance]:
        rng = np.random.default_rng(seed)
        return [draw_utterance(speaker, rng) for speaker in draw_speakers("train", 12, seed)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_sentences_hardly_repeat():
    speaker = draw_speakers("test", 1, 0)[0]
    rng = np.random.default_rng(0)
    texts = {draw_utterance(speaker, rng).text for _ in range(500)}
    assert len(texts) > 495
    assert all(text[0].isupper() and text[-1] in ".?" for text in texts)


def test_low_and_high_variants_differ_in_pitch():
    low = [pitch_hz(say(v)) for v in VARIANTS["test"]["low"]]
    high = [pitch_hz(say(v)) for v in VARIANTS["test"]["high"]]
    assert np.median(low) < 130
    assert np.median(high) > 150


@pytest.mark.parametrize(("change", "factor"), [({"pitch": 70}, 1.21), ({"warp": 1.2}, 1.2)])
def test_pitch_and_warp_raise_the_voice(change, factor):
    assert pitch_hz(say("m3", **change)) / pitch_hz(say("m3")) == pytest.approx(factor, rel=0.06)


def test_the_data_may_lie_deep_in_the_file_system(tmp_path, monkeypatch):
    """espeak-ng itself cannot read a path of over 160 characters."""
    espeakng_loader = pytest.importorskip("espeakng_loader")
    expected, data = say("m3"), espeakng_loader.get_data_path()
    deep = tmp_path / ("x" * 100) / ("y" * 100) / "espeak-ng-data"
    deep.parent.mkdir(parents=True)
    deep.symlink_to(data)
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(deep))
    assert np.array_equal(say("m3"), expected)


def test_a_rate_above_espeaks_is_refused():
    with pytest.raises(UserError, match="--fs 44100"):
        synthesize(Utterance("en-us+m3", 50, 180, 1, 1.0, TEXT), 44100)


def test_an_unknown_voice_is_named():
    with pytest.raises(UserError, match="no voice 'xx-none'"):
        synthesize(Utterance("xx-none", 50, 180, 1, 1.0, TEXT), FS)
