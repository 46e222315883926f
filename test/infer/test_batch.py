"""Files, folders and lists; what is finished stays, what fails stops nobody."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from sepx_models import RATE, write_noise

import espnet2_sepx
from espnet2_sepx.bin.separate import main
from espnet2_sepx.errors import UserError
from espnet2_sepx.infer import batch


def run(exp, out, *arguments) -> dict:
    options = ["--model", exp, "--output", out]
    status = main([str(word) for word in (*arguments, *options)])
    summary = json.loads((out / "separate.json").read_text())
    assert status == (1 if summary["failed"] else 0)
    return summary


@pytest.mark.parametrize(("fs", "channels"), [(RATE, 1), (44100, 2)])
def test_a_file_comes_out_at_its_own_rate_and_length(tf_moe_exp, tmp_path, capsys, fs, channels):
    path = write_noise(tmp_path / "talk.wav", 1.0001, fs, channels)
    summary = run(tf_moe_exp, tmp_path / "out", path)
    assert "1 of 1 recordings separated" in capsys.readouterr().out
    for n in (1, 2):
        info = soundfile.info(tmp_path / f"out/talk_spk{n}.wav")
        assert (info.samplerate, info.channels, info.subtype) == (fs, 1, "FLOAT")
        assert info.frames == soundfile.info(path).frames
    assert summary["results"][0]["seconds"] == soundfile.info(path).frames / fs
    assert summary["results"][0]["gain"] == 1.0


def test_long_files_are_chunked_as_in_memory_and_their_joints_told(tf_moe_exp, tmp_path):
    path = write_noise(tmp_path / "talk.flac", 5)
    summary = run(tf_moe_exp, tmp_path / "out", path, "--chunk_s", 2, "--activity", "true")
    streams = [
        soundfile.read(tmp_path / f"out/talk_spk{n}.wav", dtype="float32")[0] for n in (1, 2)
    ]
    expected = espnet2_sepx.separate(path, str(tf_moe_exp), chunk_s=2)
    np.testing.assert_allclose(np.stack(streams), expected, atol=1e-6)
    assert summary["joints"] == len(summary["results"][0]["joints"]) >= 2
    assert set(summary["results"][0]["joints"][0]) == {
        *("time_s", "overlap_s", "order", "by", "confidence")
    }
    turns = (tmp_path / "out/talk.rttm").read_text().splitlines()
    assert turns[0].split()[:3] == ["SPEAKER", "talk", "1"]
    assert turns[0].split()[7] in ("spk1", "spk2")


def test_folders_keep_their_shape_and_lists_are_laid_out_as_espnet_does(tf_moe_exp, tmp_path):
    write_noise(tmp_path / "in/a/one.wav", 0.2)
    write_noise(tmp_path / "in/b/one.flac", 0.2)
    write_noise(tmp_path / "in/b/two.WAV", 0.2)
    (tmp_path / "in/notes.txt").write_text("no audio")
    write_noise(tmp_path / "in/out/old_spk1.wav", 0.2)  # of an earlier run
    summary = run(tf_moe_exp, tmp_path / "in/out", tmp_path / "in")
    assert sorted(r["key"] for r in summary["results"]) == ["a/one", "b/one", "b/two"]
    assert (tmp_path / "in/out/b/two_spk2.wav").is_file()

    (tmp_path / "wav.scp").write_text(
        f"utt-2 {tmp_path}/in/b/one.flac\nutt.1 {tmp_path}/in/a/one.wav\n"
    )
    run(tf_moe_exp, tmp_path / "listed", tmp_path / "wav.scp", "--activity", "true")
    expected = [f"{k} {tmp_path}/listed/wavs/2/{k}.wav" for k in ("utt-2", "utt.1")]
    assert (tmp_path / "listed/spk2.scp").read_text().splitlines() == expected
    assert soundfile.info(tmp_path / "listed/wavs/2/utt.1.wav").frames == 1600
    assert (tmp_path / "listed/rttm/utt.1.rttm").is_file()


def test_names_that_differ_in_their_ending_keep_it(tf_moe_exp, tmp_path):
    paths = [write_noise(tmp_path / "in" / name, 0.2) for name in ("x.wav", "x.flac")]
    summary = run(tf_moe_exp, tmp_path / "out", *paths, paths[0])
    assert sorted(r["key"] for r in summary["results"]) == ["x.flac", "x.wav"]
    other = write_noise(tmp_path / "other/x.wav", 0.2)
    with pytest.raises(UserError, match=r"would both be written as x\.wav"):
        run(tf_moe_exp, tmp_path / "out", paths[0], other)


def test_what_is_done_is_not_done_again_unless_something_changed(tf_moe_exp, tmp_path, monkeypatch):
    paths = [write_noise(tmp_path / f"{n}.wav", 0.3, seed=n) for n in range(3)]
    out, done = tmp_path / "out", []
    honest = batch.separate_file
    monkeypatch.setattr(
        batch, "separate_file", lambda s, task, p: done.append(task.job.key) or honest(s, task, p)
    )
    run(tf_moe_exp, out, *paths)
    assert run(tf_moe_exp, out, *paths)["done_before"] == 3
    (out / "1_spk2.wav").unlink()
    with open(out / batch.JOURNAL, "a") as stream:
        stream.write('\n{"key": "0", "cut')  # a kill while writing
    assert run(tf_moe_exp, out, *paths)["done_before"] == 2
    write_noise(paths[2], 0.4)
    assert run(tf_moe_exp, out, *paths)["done_before"] == 2
    run(tf_moe_exp, out, *paths, "--overwrite", "true")
    run(tf_moe_exp, out, *paths, "--chunk_s", 0.2)
    assert "".join(done) == "012" + "1" + "2" + "012" + "012"


def test_several_processes_give_the_same(tf_moe_exp, tmp_path, capsys):
    paths = [write_noise(tmp_path / f"{n}.wav", 0.3, seed=n) for n in range(2)]
    (tmp_path / "bad.wav").write_text("no audio")
    one = run(tf_moe_exp, tmp_path / "one", *paths)
    two = run(tf_moe_exp, tmp_path / "two", *paths, tmp_path / "bad.wav", "--nj", 2)
    assert (two["failed"], two["files"]) == (1, 3)
    assert "bad.wav: is not audio" in capsys.readouterr().err
    for name in ("0_spk1.wav", "1_spk2.wav"):
        np.testing.assert_allclose(
            soundfile.read(tmp_path / "one" / name)[0],
            soundfile.read(tmp_path / "two" / name)[0],
            atol=1e-6,
        )
    assert one["failed"] == 0


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_pcm_is_never_clipped_and_keeps_relative_levels(tf_moe_exp, tmp_path, capsys, subtype):
    path = tmp_path / "loud.wav"
    soundfile.write(path, np.sign(np.random.default_rng(0).standard_normal(4000)), RATE)  # clipped
    run(tf_moe_exp, tmp_path / "float", path)
    floats = np.stack([soundfile.read(tmp_path / f"float/loud_spk{n}.wav")[0] for n in (1, 2)])
    factor = 30 / np.abs(floats).max()
    soundfile.write(path, factor * soundfile.read(path)[0], RATE, "FLOAT")
    summary = run(tf_moe_exp, tmp_path / "pcm", path, "--subtype", subtype)
    gain = summary["results"][0]["gain"]
    assert gain == pytest.approx(1 / 30, rel=1e-3)
    assert f"all speakers scaled by {gain:.4f}" in capsys.readouterr().out
    for n in (1, 2):
        pcm, _ = soundfile.read(tmp_path / f"pcm/loud_spk{n}.wav")
        assert soundfile.info(tmp_path / f"pcm/loud_spk{n}.wav").subtype == subtype
        np.testing.assert_allclose(pcm, gain * factor * floats[n - 1], atol=1e-4)


def test_channels_each_for_itself_and_those_that_cancel(tf_moe_exp, tmp_path, capsys):
    path = write_noise(tmp_path / "stereo.wav", 0.5, channels=2)
    run(tf_moe_exp, tmp_path / "each", path, "--channels", "each")
    assert soundfile.info(tmp_path / "each/stereo_spk1.wav").channels == 2
    signal, _ = soundfile.read(path)
    soundfile.write(path, np.stack((signal[:, 0], -signal[:, 0]), 1), RATE)
    run(tf_moe_exp, tmp_path / "mix", path)
    assert "stereo: its channels cancel in the mean; try --channels" in capsys.readouterr().out


def test_the_command_line_as_a_user_runs_it(tf_moe_exp, tmp_path):
    path = write_noise(tmp_path / "talk.wav", 0.5)
    command = [sys.executable, "-m", "espnet2_sepx.bin.separate", path, "--model", tf_moe_exp]
    done = subprocess.run(
        [str(word) for word in (*command, "--output", tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.startswith("1 of 1 recordings separated into")
