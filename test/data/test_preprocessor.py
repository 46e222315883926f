"""Laws of the training preprocessor: sums stay sums, lengths, levels, speakers, seeds."""

from fractions import Fraction

import numpy as np
import pytest
import soundfile

from espnet2_sepx.data.preprocessor import SeparationPreprocessor, change_speed
from espnet2_sepx.errors import UserError

RATE = 8000


def example(length: int = 6000, noise: bool = False) -> dict:
    draw = np.random.default_rng(length)
    signals = draw.standard_normal((3, length)).astype(np.float32) * 0.1
    data = {"speech_ref1": signals[0], "speech_ref2": signals[1]}
    if noise:
        data["noise_ref1"] = signals[2]
    return {"speech_mix": sum(data.values()), **data}


def residual(data: dict) -> float:
    parts = [signal for name, signal in data.items() if name != "speech_mix"]
    return float(np.abs(data["speech_mix"] - sum(parts)).max())


@pytest.fixture
def sources(tmp_path):
    """Four speakers with two utterances each; speaker k is a tone of (k + 1) * 200 Hz."""
    scp, spk = [], []
    for speaker in range(4):
        for take in range(2):
            name, length = f"s{speaker}u{take}", 4000 + 3000 * take
            tone = (
                0.1
                * (speaker + 1)
                * np.sin(2 * np.pi * 200 * (speaker + 1) * np.arange(length) / RATE)
            )
            soundfile.write(tmp_path / f"{name}.wav", tone, RATE)
            scp.append(f"{name} {tmp_path / name}.wav\n")
            spk.append(f"{name} s{speaker}\n")
    (tmp_path / "source.scp").write_text("".join(sorted(scp)))
    (tmp_path / "source2spk").write_text("".join(sorted(spk)))
    return {
        "source_scp": str(tmp_path / "source.scp"),
        "source2spk": str(tmp_path / "source2spk"),
    }


def test_evaluation_changes_nothing_and_opens_no_file():
    preprocess = SeparationPreprocessor(
        False, segment_s=0.1, dynamic_mixing=True, source_scp="/nowhere", source2spk="/nowhere"
    )
    data = example()
    assert preprocess("utt", data) is data


@pytest.mark.parametrize("noise", [False, True])
def test_crop_is_common_to_all_signals(noise):
    np.random.seed(0)
    preprocess = SeparationPreprocessor(True, sample_rate=RATE, segment_s=0.25)
    cropped = preprocess("utt", example(noise=noise))
    assert {len(signal) for signal in cropped.values()} == {2000}
    assert residual(cropped) < 1e-6


def test_every_start_can_be_drawn_and_short_utterances_stay_whole():
    np.random.seed(0)
    preprocess = SeparationPreprocessor(True, sample_rate=RATE, segment_s=0.25)
    ramp = np.arange(2002, dtype=np.float32)
    data = dict.fromkeys(("speech_mix", "speech_ref1", "speech_ref2"), ramp)
    starts = {int(preprocess("utt", data)["speech_mix"][0]) for _ in range(50)}
    assert starts == {0, 1, 2}
    short = example(1500)
    assert np.array_equal(preprocess("utt", short)["speech_mix"], short["speech_mix"])


def test_speed_changes_duration_and_pitch_of_all_signals_alike():
    np.random.seed(0)
    preprocess = SeparationPreprocessor(True, sample_rate=RATE, speed_perturb_factors=[1.25])
    fast = preprocess("utt", example(6000, noise=True))
    assert {len(signal) for signal in fast.values()} == {4800}
    assert residual(fast) < 1e-5
    tone = np.sin(2 * np.pi * 400 * np.arange(8000) / RATE)
    spectrum = np.abs(np.fft.rfft(change_speed(tone, Fraction(5, 4))))
    assert spectrum.argmax() * RATE / 6400 == pytest.approx(500, abs=2)


@pytest.mark.parametrize("noise", [False, True])
def test_dynamic_mixture_is_the_sum_of_two_speakers_within_the_gain_range(sources, noise):
    np.random.seed(1)
    preprocess = SeparationPreprocessor(
        True, sample_rate=RATE, segment_s=0.5, dynamic_mixing=True, gain_db=2.5, **sources
    )
    for _ in range(20):
        data = example(noise=noise)
        mixed = preprocess("utt", data)
        assert residual(mixed) < 1e-5
        assert np.abs(mixed["speech_mix"]).max() <= 0.9 + 1e-5
        assert len(mixed["speech_mix"]) == 4000
        references = [mixed["speech_ref1"], mixed["speech_ref2"]]
        tones = [int(np.abs(np.fft.rfft(r)).argmax()) for r in references]
        assert tones[0] != tones[1]
        levels = [10 * np.log10(np.mean(r[np.abs(r) > 0] ** 2)) for r in references]
        assert abs(levels[0] - levels[1]) <= 5.1
        if noise:
            before = np.mean(data["noise_ref1"] ** 2) / np.mean(
                (data["speech_mix"] - data["noise_ref1"]) ** 2
            )
            speech = mixed["speech_mix"] - mixed["noise_ref1"]
            after = np.mean(mixed["noise_ref1"] ** 2) / np.mean(speech**2)
            assert 10 * np.log10(after / before) == pytest.approx(0, abs=0.1)


def test_the_seed_decides_the_mixture(sources):
    preprocess = SeparationPreprocessor(
        True,
        sample_rate=RATE,
        segment_s=0.3,
        dynamic_mixing=True,
        speed_perturb_factors=[0.9, 1.0, 1.1],
        **sources,
    )
    drawn = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        drawn.append(preprocess("utt", example())["speech_mix"])
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    np.random.seed(3)  # as in another process of the same distributed training
    assert not np.array_equal(drawn[0], preprocess("another", example())["speech_mix"])


@pytest.mark.parametrize(
    "options",
    [
        {"segment_s": 0},
        {"gain_db": -1},
        {"speed_perturb_factors": [3.0]},
        {"dynamic_mixing": True},
    ],
)
def test_bad_options_name_the_argument(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SeparationPreprocessor(True, **options)


def test_wrong_rate_and_too_few_speakers_name_the_file(sources, tmp_path):
    preprocess = SeparationPreprocessor(True, sample_rate=16000, dynamic_mixing=True, **sources)
    with pytest.raises(UserError, match=r"wav: expected 16000 Hz, found 8000 Hz"):
        preprocess("utt", example())
    with pytest.raises(UserError, match=r"source\.scp: dynamic mixing of 5 speakers"):
        SeparationPreprocessor(True, num_spk=5, dynamic_mixing=True, **sources)
