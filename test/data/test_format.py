"""Formatting (stage 2): laws on the audio, tables, refusals."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from data_directory import SAMPLES, make_data_directory

from espnet2_sepx.data.directory import find_problems, read_data_directory
from espnet2_sepx.data.format import Target, format_data_directory
from espnet2_sepx.data.kaldi import read_scp
from espnet2_sepx.errors import UserError


def read_signals(path, key):
    names = ("wav", "spk1", "spk2", "noise1")
    return {name: soundfile.read(read_scp(path / f"{name}.scp")[key])[0] for name in names}


def snapshot(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def test_right_files_are_referred_to_and_tables_kept(tmp_path):
    source = make_data_directory(tmp_path / "in")
    assert format_data_directory(source, tmp_path / "out", Target(8000, "wav")) == (3, 0)
    expected = snapshot(source)
    expected["utt2num_samples"] = "".join(f"{key} {n}\n" for key, n in SAMPLES.items()).encode()
    assert snapshot(tmp_path / "out") == expected


@pytest.mark.parametrize("audio_format", ["wav", "flac"])
def test_resampled_mixture_is_the_sum_of_its_parts(tmp_path, audio_format):
    source = make_data_directory(tmp_path / "in", fs=16000, subtype="PCM_24")
    rng = np.random.default_rng(0)  # resampling steps of +-0.99 overshoots full scale
    steps = np.repeat(rng.choice([-0.33, 0.33], 100), 10)
    for name in ("spk1", "spk2", "noise1", "wav"):
        file = read_scp(source / f"{name}.scp")["a_b_0"]
        soundfile.write(file, 3 * steps if name == "wav" else steps, 16000, subtype="PCM_24")
    format_data_directory(source, tmp_path / "out", Target(8000, audio_format))
    for key, samples in SAMPLES.items():
        signals = read_signals(tmp_path / "out", key)
        assert {len(signal) for signal in signals.values()} == {-(-samples // 2)}
        parts = signals["spk1"] + signals["spk2"] + signals["noise1"]
        assert np.abs(signals["wav"] - parts).max() <= 2.5 / 2**23
        assert (np.abs(signals["wav"]).max() > 0.9999) == (key == "a_b_0")
    info = soundfile.info(read_scp(tmp_path / "out" / "wav.scp")["a_b_0"])
    assert (info.samplerate, info.format, info.subtype) == (8000, audio_format.upper(), "PCM_24")
    assert list(find_problems(read_data_directory(tmp_path / "out"), check_audio=True)) == []


def test_a_tone_survives_resampling(tmp_path):
    source = make_data_directory(tmp_path / "in", fs=16000)
    path = read_scp(source / "source.scp")["a-0"]
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000), 16000)
    format_data_directory(source, tmp_path / "out", Target(8000, "wav"))
    tone, _ = soundfile.read(read_scp(tmp_path / "out" / "source.scp")["a-0"])
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    assert np.abs(tone - expected)[100:-100].max() < 2e-3


def test_container_alone_changes_no_sample(tmp_path):
    source = make_data_directory(tmp_path / "in", extension="flac")
    format_data_directory(source, tmp_path / "out", Target(8000, "wav"))
    before, after = read_signals(source, "a_b_1"), read_signals(tmp_path / "out", "a_b_1")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_float_stays_float_and_large_values_fit_into_flac(tmp_path):
    source = make_data_directory(tmp_path / "in", subtype="FLOAT", std=0.5)
    format_data_directory(source, tmp_path / "wav", Target(8000, "wav"))
    assert read_scp(tmp_path / "wav" / "wav.scp") == read_scp(source / "wav.scp")
    format_data_directory(source, tmp_path / "flac", Target(8000, "flac"))
    before, after = read_signals(source, "a_b_0"), read_signals(tmp_path / "flac", "a_b_0")
    assert np.abs(before["wav"]).max() > 1.0 >= np.abs(after["wav"]).max()
    gain = np.abs(after["wav"]).max() / np.abs(before["wav"]).max()
    for name, signal in before.items():
        np.testing.assert_allclose(after[name], gain * signal, atol=1e-6)


def test_length_filter_applies_to_all_tables_but_the_sources(tmp_path):
    source = make_data_directory(tmp_path / "in")
    target = Target(8000, "wav", min_s=1000 / 8000, max_s=1500 / 8000)
    assert format_data_directory(source, tmp_path / "out", target) == (1, 2)
    out = tmp_path / "out"
    for name in ("wav.scp", "spk1.scp", "noise1.scp", "utt2spk", "utt2overlap", "utt2num_samples"):
        assert list(read_scp(out / name)) == ["a_b_0"]
    assert read_scp(out / "spk2utt") == {"a_b": "a_b_0"}
    assert list(read_scp(out / "source.scp")) == ["a-0", "b-0"]


def test_processes_and_repetition_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("espnet2_sepx.data.format._WORTH_A_PROCESS", 1)
    source = make_data_directory(tmp_path / "in", fs=16000)
    format_data_directory(source, tmp_path / "out", Target(8000, "wav"))
    first = snapshot(tmp_path / "out")
    format_data_directory(source, tmp_path / "out", Target(8000, "wav"), nj=2)
    assert snapshot(tmp_path / "out") == first
    assert {path.name for path in tmp_path.iterdir()} == {"in", "in_audio", "out"}


def stereo(path):
    soundfile.write(path, np.full((1000, 2), 0.1), 8000)


def low_rate(path):
    soundfile.write(path, np.full(500, 0.1), 4000)


def other_rate(path):
    soundfile.write(path, np.full(1000, 0.1), 16000)


def not_a_number(path):
    signal = np.full(1000, 0.1)
    signal[7] = np.nan
    soundfile.write(path, signal, 8000, subtype="FLOAT")


def empty(path):
    soundfile.write(path, np.zeros(0), 8000)


def zero_bytes(path):
    path.write_bytes(b"")


def silent(path):
    soundfile.write(path, np.full(1000, 3e-5), 8000)


def short(path):
    soundfile.write(path, np.full(999, 0.1), 8000)


def text(path):
    path.write_text("no audio")


def missing(path):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (stereo, "has 2 channels, expected 1; convert it"),
        (low_rate, "sampling rate is 4000 Hz, below the 8000 Hz"),
        (other_rate, "sampling rate is 16000 Hz, but .* has 8000 Hz; convert"),
        (not_a_number, "has NaN or infinite samples; repair"),
        (empty, "has no samples; remove"),
        (zero_bytes, "cannot be read as audio"),
        (silent, "is silent .*; remove its utterance"),
        (short, "has 999 samples, but the mixture .* has 1000; make them equally long"),
        (text, "cannot be read as audio"),
        (missing, "there is no file .*; restore it"),
    ],
)
def test_bad_audio_is_refused_and_nothing_is_written(tmp_path, spoil, message):
    source = make_data_directory(tmp_path / "in")
    path = Path(read_scp(source / "spk2.scp")["a_b_0"])
    spoil(path)
    with pytest.raises(UserError, match=message) as caught:
        format_data_directory(source, tmp_path / "out", Target(8000, "wav"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "in_audio"}


def test_noise_may_be_silent(tmp_path):
    source = make_data_directory(tmp_path / "in")
    soundfile.write(read_scp(source / "noise1.scp")["a_b_0"], np.zeros(1000), 8000)
    assert format_data_directory(source, tmp_path / "out", Target(8000, "wav")) == (3, 0)


def test_faults_of_tables_and_limits_are_refused(tmp_path):
    source = make_data_directory(tmp_path / "in")
    with pytest.raises(UserError, match=r"no utterance is at least 9 s and at most 10 s long"):
        format_data_directory(source, tmp_path / "out", Target(8000, "wav", 9.0, 10.0))
    with pytest.raises(UserError, match="is the input as well"):
        format_data_directory(source, source, Target(8000, "wav"))
    (source / "spk2.scp").unlink()
    with pytest.raises(UserError, match=r"spk2\.scp: is missing"):
        format_data_directory(source, tmp_path / "out", Target(8000, "wav"))


def test_the_command(tmp_path):
    source = make_data_directory(tmp_path / "in")
    command = [sys.executable, "-m", "espnet2_sepx.bin.format_data", "--in", source, "--fs", "8000"]
    good = subprocess.run(
        [*command, "--out", tmp_path / "out", "--min_s", "0.11"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert good.returncode == 0, good.stderr
    assert good.stderr.endswith(f"{tmp_path / 'out'}: 2 utterances, 1 left out for their length\n")
    bad = subprocess.run(
        [*command, "--out", "/proc/none/out"], capture_output=True, text=True, check=False
    )
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: cannot write /proc/none/out")
