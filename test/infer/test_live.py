"""Standard input to separated streams, in step with the input."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from sepx_models import RATE, speech_like

import espnet2_sepx
from espnet2_sepx.errors import UserError
from espnet2_sepx.infer.live import FORMATS, PCM, read_blocks, read_header, separate_live

LATENCY = 14 * 8 + 16  # samples; frames of a chunk that wait, hop and frame of `causal_exp`


def wav_bytes(signal: np.ndarray, subtype: str, fs: int = RATE, format: str = "WAV") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, signal, fs, subtype, format=format)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("subtype", "format", "step"),
    [
        ("PCM_16", "WAV", 2**-15),
        ("PCM_32", "WAV", 1e-7),
        ("FLOAT", "WAV", 1e-9),
        ("FLOAT", "WAVEX", 1e-9),
    ],
)
def test_wav_of_any_usual_kind_is_read_as_libsndfile_does(subtype, format, step):
    signal = np.random.default_rng(0).uniform(-1, 1, (1234, 2))
    source = io.BytesIO(wav_bytes(signal, subtype, format=format))
    pcm, first = read_header(source, None)
    assert (pcm.fs, pcm.channels) == (RATE, 2)
    blocks = list(read_blocks(source, pcm, first, 0.01))
    assert {len(block) for block in blocks} == {80, 1234 % 80}
    np.testing.assert_allclose(np.concatenate(blocks), signal, atol=step)


@pytest.mark.parametrize("format", FORMATS)
def test_raw_samples_there_and_back(format):
    pcm = PCM(format, RATE, 2)
    signal = np.array([[0.5, -0.5], [1.5, -1.5]], np.float32)  # beyond full scale
    back = pcm.decode(pcm.encode(signal))
    np.testing.assert_allclose(
        back, signal if format == "f32le" else signal.clip(-1, 1), atol=2**-14
    )
    source = io.BytesIO(pcm.encode(signal) + b"x")  # an incomplete frame at the end
    declared, first = read_header(source, pcm)
    assert sum(map(len, read_blocks(source, declared, first, 1.0))) == 2


def test_sizes_in_the_header_of_a_pipe_mean_nothing():
    data = bytearray(wav_bytes(np.zeros(100), "PCM_16"))
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    source = io.BytesIO(bytes(data))
    pcm, first = read_header(source, None)
    assert sum(map(len, read_blocks(source, pcm, first, 1.0))) == 100


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not WAV; for raw samples"),
        (b"fLaC" + bytes(100), "is not WAV; for raw samples"),
        (wav_bytes(np.zeros(9), "PCM_24"), "WAV of 24 bits"),
        (wav_bytes(np.zeros(9), "PCM_16")[:30], "WAV header without samples|WAV without a format"),
    ],
)
def test_what_is_not_understood_is_told(data, message):
    with pytest.raises(UserError, match=message):
        read_header(io.BytesIO(data), None)


def test_samples_that_are_not_finite_are_told():
    pcm = PCM("f32le", RATE, 1)
    with pytest.raises(UserError, match="NaN or infinite"):
        list(read_blocks(io.BytesIO(np.full(9, np.nan, "<f4").tobytes()), pcm, b"", 1.0))


@pytest.mark.parametrize("fs", [RATE, 16000])
def test_live_equals_offline_in_files_and_in_a_pipe(causal_exp, tmp_path, fs):
    separator = espnet2_sepx.load_separator(str(causal_exp))
    mixture = speech_like(fs, fs, np.random.default_rng(0), 3000)
    source = wav_bytes(mixture, "FLOAT", fs)
    expected = separator(mixture, fs)
    out = tmp_path / "out"
    report = separate_live(separator, io.BytesIO(source), str(out), io.BytesIO(), None, 0.02)
    streams = [soundfile.read(out / f"spk{n}.wav", dtype="float32") for n in (1, 2)]
    assert all(rate == fs for _, rate in streams)
    np.testing.assert_allclose(np.stack([x for x, _ in streams]), expected, atol=1e-5)
    assert report.seconds == 1.0
    assert report.algorithmic_latency_s == LATENCY / RATE
    pipe = io.BytesIO()
    separate_live(separator, io.BytesIO(source), "-", pipe, None, 0.013)
    piped = np.frombuffer(pipe.getvalue(), "<f4").reshape(-1, 2).T
    np.testing.assert_allclose(piped, expected, atol=1e-5)


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "espnet2_sepx.bin.separate", "--stream", *map(str, options)]


def test_streams_come_while_the_input_is_still_open(causal_exp):
    mixture = (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype("<f4")
    options = ["--model", causal_exp, "--output", "-", "--pcm", "f32le", "--pcm_fs", RATE]
    process = subprocess.Popen(
        command(*options), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write(mixture.tobytes())
    process.stdin.flush()
    ready = 4 * 2 * (RATE - LATENCY - RATE // 50)  # all but the latency and one block
    received = process.stdout.read(ready)
    assert len(received) == ready
    process.stdin.close()
    rest, messages = process.stdout.read(), process.stderr.read()
    assert process.wait(timeout=60) == 0
    streams = np.frombuffer(received + rest, "<f4").reshape(-1, 2).T
    expected = espnet2_sepx.separate(mixture, str(causal_exp), fs=RATE)
    np.testing.assert_allclose(streams, expected, atol=1e-5)
    assert b"1.00 s at real-time factor" in messages
    assert b"algorithmic latency 16.0 ms" in messages


def test_a_model_that_needs_the_whole_is_refused(tf_moe_exp, tmp_path):
    done = subprocess.run(
        command("--model", tf_moe_exp, "--output", tmp_path / "out"),
        input=wav_bytes(np.zeros(100), "FLOAT"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"cannot separate as it listens: its separator sees the whole recording" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_a_minute_in_real_time(causal_exp, tmp_path):
    """Blocks are written when a microphone would deliver them."""
    fs, seconds = 16000, 60
    mixture = speech_like(fs * seconds, fs, np.random.default_rng(0), 3500)
    options = ["--model", causal_exp, "--output", tmp_path / "out", "--fs", fs, "--threads", 1]
    process = subprocess.Popen(command(*options), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    data, block = wav_bytes(mixture, "FLOAT", fs), 4 * fs // 50
    begin = time.monotonic()
    for index, start in enumerate(range(0, len(data), block)):
        time.sleep(max(begin + index / 50 - time.monotonic(), 0))
        process.stdin.write(data[start : start + block])
        process.stdin.flush()
    _, messages = process.communicate(timeout=60)
    print(messages.decode())
    assert process.returncode == 0
    assert float(messages.split(b"real-time factor ")[1].split(b";")[0]) < 1
    expected = espnet2_sepx.load_separator(str(causal_exp), fs=fs)(mixture, fs)
    streams = np.stack([soundfile.read(tmp_path / f"out/spk{n}.wav")[0] for n in (1, 2)])
    np.testing.assert_allclose(streams, expected, atol=1e-5)
