"""Choice, order and levels of the examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_sepx.errors import UserError
from espnet2_sepx.report.collect import EvalSet, read_rows
from espnet2_sepx.report.examples import (
    AUDIO_BUDGET,
    FLAC_BYTES_PER_SAMPLE,
    PEAK,
    align,
    choose,
    decibels,
    encode_flac,
    excerpt_seconds,
    level,
    make_example,
    open_set,
    read_audio,
)

ROWS = [{"utt": f"u{index}", "si_snri": float(index)} for index in range(11)]
UTTS = [row["utt"] for row in ROWS]


def test_typical_best_and_worst_come_first() -> None:
    assert choose(ROWS, UTTS, 3) == [("u5", "typical (median)"), ("u10", "best"), ("u0", "worst")]
    chosen = [utt for utt, _ in choose(ROWS, UTTS, 7)]
    assert len(set(chosen)) == len(chosen) == 7


@pytest.mark.parametrize("available", [0, 1, 2])
def test_fewer_mixtures_than_wanted(available: int) -> None:
    assert len(choose(ROWS[:available], UTTS[:available], 5)) == available


def test_unscored_mixtures_are_spread_evenly() -> None:
    rows = [{"utt": utt, "si_snri": None} for utt in UTTS]
    assert choose(rows, UTTS, 2) == [("u0", "not scored"), ("u9", "not scored")]


@pytest.mark.parametrize("written", ["2 1", "1 0", "", "no idea"])
def test_estimates_are_put_in_the_order_of_the_references(written: str) -> None:
    rng = np.random.default_rng(0)
    references = [rng.standard_normal(800), rng.standard_normal(800)]
    estimates = [references[1] + 0.1, references[0] * 2]
    first, second = align(references, estimates, written)
    assert first is estimates[1]
    assert second is estimates[0]


def test_one_gain_for_all_and_estimates_at_their_references_energy() -> None:
    rng = np.random.default_rng(0)
    references = [rng.standard_normal(800), 0.1 * rng.standard_normal(800)]
    mixture = references[0] + references[1]
    levelled = level(mixture, references, [7 * references[0], 1e-3 * references[1]])
    gain = levelled[0][0] / mixture[0]
    for signal, reference in zip(levelled[1:], references * 2, strict=True):
        assert np.allclose(signal, gain * reference)
    assert max(np.abs(signal).max() for signal in levelled) == pytest.approx(PEAK)


def test_silence_stays_silent() -> None:
    silent = np.zeros(100)
    for signal in level(silent, [silent], [silent]):
        assert not signal.any()
    loud = np.ones(100)
    assert np.allclose(level(loud, [silent], [loud])[2], PEAK)


@pytest.mark.parametrize(("tracks", "fs"), [(25, 8000), (25, 16000), (100, 16000)])
def test_audio_keeps_to_its_budget(tracks: int, fs: int) -> None:
    seconds = excerpt_seconds(tracks, fs)
    assert 2 <= seconds <= 12
    assert tracks * seconds * fs * FLAC_BYTES_PER_SAMPLE <= max(
        AUDIO_BUDGET, 2 * tracks * fs * FLAC_BYTES_PER_SAMPLE
    )


def test_flac_gives_the_signal_back(tmp_path: Path) -> None:
    signal = np.sin(np.arange(4000) / 9) * 0.5
    path = tmp_path / "x.flac"
    path.write_bytes(encode_flac(signal, 8000))
    read, fs = read_audio(str(path), 8000)
    assert fs == 8000
    assert np.abs(read - signal).max() < 2**-15


def test_an_example_of_the_fake_experiment(finished: tuple[Path, Path]) -> None:
    exp, data = finished
    rows = read_rows(exp / "score_test" / "utterances.csv")
    signals = open_set(EvalSet("test", data, exp / "separated_test", None, rows))
    assert signals is not None
    example = make_example(signals, rows[1], rows[1]["utt"], "best", 0.5, None)
    assert [track.label for track in example.tracks] == [
        "Mixture",
        "Reference 1",
        "Reference 2",
        "Estimate 1",
        "Estimate 2",
    ]
    assert (example.seconds, example.shown) == (1.5, 0.5)
    assert [track.role for track in example.speakers[1]] == ["reference", "estimate"]
    assert f"{rows[1]['si_snri_spk1']:.1f} dB" in example.tracks[3].note


@pytest.mark.parametrize(
    ("signal", "fs", "message"),
    [
        (np.zeros((10, 2)), 8000, "one channel"),
        (np.zeros(10), 16000, "expected 8000 Hz, found 16000 Hz"),
    ],
)
def test_wrong_audio_is_named(tmp_path: Path, signal: np.ndarray, fs: int, message: str) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, signal, fs)
    with pytest.raises(UserError, match=message):
        read_audio(str(path), 8000)


def test_file_that_is_no_audio(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_text("words")
    with pytest.raises(UserError, match="cannot be read as audio"):
        read_audio(str(path), None)


def test_decibels() -> None:
    assert [decibels(value) for value in (3.14, -0.01, -2.0)] == [
        "+3.1 dB",
        "0.0 dB",
        "\N{MINUS SIGN}2.0 dB",
    ]
