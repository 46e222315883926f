from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_sepx.data.recordings import (
    check_header,
    find_files,
    find_speech,
    read_recording,
    room_of,
    share_out,
)
from espnet2_sepx.errors import UserError

FS = 8000


def audio(path: Path, signal=None, fs: int = 16000, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if signal is None:
        signal = np.sin(np.arange(fs) * 2 * np.pi * 300 / fs) * 0.5
    soundfile.write(path, signal, fs, **options)
    return path


# -- finding ---------------------------------------------------------------------------------------


def test_speakers_are_shared_out_disjointly_and_the_same_each_time(tmp_path):
    for number in range(12):
        audio(tmp_path / f"spk{number}" / "chapter" / "one.wav")
        (tmp_path / f"spk{number}" / "notes.txt").write_text("not audio")
    sets = find_speech(tmp_path, seed=1)
    everyone = [speaker for speakers in sets.values() for speaker in speakers]
    assert sorted(everyone) == sorted({f"spk{n}" for n in range(12)})
    assert [len(sets[name]) for name in ("train", "valid", "test")] == [8, 2, 2]
    assert find_speech(tmp_path, seed=1) == sets
    assert find_speech(tmp_path, seed=2) != sets
    assert all(len(files) == 1 for speakers in sets.values() for files in speakers.values())


@pytest.mark.parametrize("valid", ["dev", "valid", "cv"])
def test_set_folders_say_who_belongs_where(tmp_path, valid):
    for folder in ("train", valid, "test"):
        for speaker in "ab":
            audio(tmp_path / folder / f"{folder}-{speaker}" / "x.flac")
    sets = find_speech(tmp_path, seed=0)
    assert set(sets["valid"]) == {f"{valid}-a", f"{valid}-b"}
    assert set(sets["train"]) == {"train-a", "train-b"}


def speakers(folder: Path, *names: str) -> Path:
    for name in names:
        audio(folder / name / "x.wav")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "nowhere", "nowhere: does not exist"),
        (lambda d: audio(d / "x.wav"), "x.wav: is not a folder"),
        (lambda d: d, "found 0 speaker folder"),
        (lambda d: speakers(d, "ann"), "found 1 speaker folder"),
        (lambda d: speakers(d, *"abcde"), "found 5 speaker folder.*give 6"),
        (lambda d: speakers(d, "train/a", "train/b", "test/c", "test/d"), "none for valid"),
        (
            lambda d: speakers(d, "train/a", "train/b", "dev/c", "test/e", "test/f"),
            "dev: found 1 speaker",
        ),
        (
            lambda d: speakers(d, "train/a", "train/b", "dev/a", "dev/c", "test/e", "test/f"),
            "dev/a: speaker 'a' is also in train",
        ),
    ],
)
def test_speech_that_cannot_make_three_sets_is_refused(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        find_speech(make(tmp_path), seed=0)


def test_positions_of_a_room_stay_in_one_set(tmp_path):
    for room in range(5):
        for position in range(3):
            audio(tmp_path / f"room{room}_p{position}.wav")
    sets = find_files(tmp_path, "--rir_dir", seed=0)
    rooms = {name: {room_of(path) for path in paths} for name, paths in sets.items()}
    assert [len(rooms[name]) for name in ("train", "valid", "test")] == [3, 1, 1]
    assert not rooms["train"] & rooms["valid"] | rooms["train"] & rooms["test"]


def test_a_single_noise_serves_all_sets_and_none_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no audio file"):
        find_files(tmp_path, "--noise_dir", seed=0)
    path = audio(tmp_path / "rain.wav")
    sets = find_files(tmp_path, "--noise_dir", seed=0)
    assert [sets[name] for name in ("train", "valid", "test")] == [[path]] * 3


def test_share_out_loses_nothing():
    shares = share_out(list(range(50)), seed=0, at_least=2)
    assert sorted(item for share in shares.values() for item in share) == list(range(50))
    assert len(shares["valid"]) == len(shares["test"]) == 5


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fs"), [("x.wav", 16000), ("x.flac", 44100), ("x.ogg", 22050), ("x.mp3", 48000)]
)
def test_any_format_and_rate_is_read_at_the_rate_of_the_corpus(tmp_path, name, fs):
    tone = np.sin(np.arange(2 * fs) * 2 * np.pi * 300 / fs) * 0.5
    signal = read_recording(audio(tmp_path / name, tone, fs), FS)
    assert len(signal) == pytest.approx(2 * FS, abs=0.12 * FS)  # MP3 pads
    middle = signal[FS // 2 : FS // 2 + FS]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 300
    assert np.abs(middle).max() == pytest.approx(0.5, rel=0.05)


def test_only_the_beginning_of_a_long_file_is_read(tmp_path):
    assert len(read_recording(audio(tmp_path / "x.wav"), FS, longest_s=0.25)) == FS // 4


SECOND = np.full(FS, 0.1)
BAD = {
    "text": (lambda p: p.write_text("hello"), "cannot be read as audio"),
    "no samples": (lambda p: audio(p, np.zeros(0), FS), "has no samples"),
    "zero bytes": (lambda p: p.write_bytes(b""), "cannot be read as audio"),
    "stereo": (lambda p: audio(p, np.zeros((FS, 2)), FS), "has 2 channels, expected 1"),
    "rate": (lambda p: audio(p, fs=4000), "sampling rate is 4000 Hz, below the 8000 Hz"),
    "nan": (lambda p: audio(p, SECOND * np.nan, FS, subtype="FLOAT"), "NaN or infinite"),
    "inf": (lambda p: audio(p, SECOND * np.inf, FS, subtype="FLOAT"), "NaN or infinite"),
    "silence": (lambda p: audio(p, np.zeros(FS), FS), "is silent"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_unusable_audio_is_refused_with_its_name(tmp_path, make, message):
    path = tmp_path / "ann" / "bad.wav"
    path.parent.mkdir()
    make(path)
    with pytest.raises(UserError, match=f"bad.wav: .*{message}") as error:
        read_recording(path, FS)
    assert "\n" not in str(error.value)


def test_the_header_shows_most_of_it(tmp_path):
    check_header(audio(tmp_path / "good.wav"), FS)
    with pytest.raises(UserError, match="channels"):
        check_header(audio(tmp_path / "stereo.wav", np.ones((FS, 2)), FS), FS)


def test_a_truncated_file_is_refused(tmp_path):
    path = audio(tmp_path / "cut.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 5 * FS))
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(UserError, match=r"cut\.flac"):
        read_recording(path, FS)
