"""Files of corpora: SPHERE is read, WAV is written as libsndfile would write it."""

import numpy as np
import pytest
import soundfile
import trees

from espnet2_sepx.data.corpora.audio import (
    BadFile,
    read_audio,
    read_header,
    to_pcm16,
    wav_bytes,
    wav_samples,
    wav_size,
    write_whole,
)
from espnet2_sepx.errors import UserError


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("samples", [1, 255, 256, 1000])
def test_sphere_files_give_their_samples(tmp_path, compressed, samples):
    signal = np.rint(trees.speech("abc", 0.1)[:samples] * 2**14).astype(np.int16)
    path = tmp_path / "01to030v.wv1"
    path.write_bytes(trees.sphere(signal, compressed))
    assert read_header(path) == (16000, samples, 1)
    assert np.array_equal(read_audio(path, "int16"), signal)
    assert np.array_equal(read_audio(path, "int16", stop=200), signal[:200])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_conversion_and_header_are_those_of_libsndfile(tmp_path, dtype):
    rng = np.random.default_rng(0)
    signal = np.r_[rng.normal(0, 0.4, 50_000), rng.normal(0, 1e-4, 5000), np.linspace(-2, 2, 999)]
    signal = signal.astype(dtype)
    soundfile.write(tmp_path / "a.wav", signal, 8000)
    data = wav_bytes(to_pcm16(signal), 8000)
    assert (tmp_path / "a.wav").read_bytes() == data
    assert len(data) == wav_size(len(signal), "PCM_16")
    assert wav_samples(len(data), "PCM_16") == len(signal)


def test_float_files_keep_their_samples_and_have_no_date(tmp_path):
    signal = np.linspace(-2, 2, 1001, dtype=np.float32)
    data = wav_bytes(signal, 16000)
    assert len(data) == wav_size(1001, "FLOAT")
    write_whole(tmp_path, "a.wav", data)
    read, fs = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert fs == 16000
    assert np.array_equal(read, signal)
    assert soundfile.info(tmp_path / "a.wav").subtype == "FLOAT"
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.wv1", None, "is missing"),
        ("a.flac", None, "is missing"),
        ("a.wv1", b"RIFF", "cannot be decoded"),
        ("a.wav", b"hello", "cannot be read as audio"),
        ("a.wv1", trees.sphere(np.ones(900, np.int16), True)[:1040], "cannot be decoded"),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match=f"{name}: {reason}"):
        read_audio(tmp_path / name)


def test_the_first_channel_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([[0.5, -0.5]] * 9), 16000)
    assert np.array_equal(read_audio(tmp_path / "a.wav", stop=4), np.full(4, 0.5, np.float32))


def test_a_folder_that_is_not_there_is_an_error_of_the_user(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*/nowhere/a\.wav"):
        write_whole(tmp_path / "nowhere", "a.wav", b"x")
