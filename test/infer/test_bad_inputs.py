"""Bad and odd inputs: a defined result or one line that names the file and the remedy.

Each bad recording is given together with a good one, which must be finished all the same.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile
from sepx_models import RATE, write_noise

from espnet2_sepx.bin.separate import main
from espnet2_sepx.errors import UserError

NOISE = 0.1 * np.random.default_rng(0).standard_normal(RATE)


@pytest.fixture
def bad(tmp_path, tf_moe_exp, capsys):
    """Separates ``tmp_path/name`` beside a good file; returns its outputs and the error."""

    def separate(name: str, *options: str):
        good = write_noise(tmp_path / "good.wav", 0.3)
        out = tmp_path / "out"
        words = [tmp_path / name, good, "--model", tf_moe_exp, "--output", out, *options]
        status = main([str(word) for word in words])
        summary = json.loads((out / "separate.json").read_text())
        assert "good" in {result["key"] for result in summary["results"]}
        assert soundfile.info(out / "good_spk2.wav").frames == 2400
        errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(errors) == summary["failed"] == status
        assert not list(out.rglob(".*tmp*")), "leftovers"
        stem = (tmp_path / name).stem
        streams = [soundfile.read(path) for path in sorted(out.glob(f"{stem}_spk*.wav"))]
        return streams, errors[0] if errors else None

    return separate


def failing(tmp_path, name: str, content: bytes | None = None) -> str:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    return name


def wav(
    tmp_path, name: str, samples: np.ndarray, fs: int = RATE, subtype: str | None = None
) -> str:
    soundfile.write(tmp_path / name, samples, fs, subtype)
    return name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.wav", b"", "empty.wav: is an empty file; replace it"),
        ("text.wav", b"Dear Sir or Madam\n", "text.wav: is not audio that libsndfile reads"),
        ("random.flac", os.urandom(999), "random.flac: is not audio that libsndfile reads"),
        ("header.wav", b"RIFF\x24\0\0\0WAVEfmt ", "header.wav: is not audio"),
        ("absent.wav", None, "absent.wav: no such file or folder; check the path"),
        ("absent.scp", None, "absent.scp: no such file; "),
        ("broken.scp", b"only-a-key\n", "expected '<key> <value>'"),
        ("command.scp", b"utt sox a.wav -t wav - |\n", "commands are not run; write the audio"),
        ("climbing.scp", b"../../utt a.wav\n", "cannot be a file name; rename it"),
    ],
)
def test_no_audio(bad, tmp_path, name, content, message):
    streams, error = bad(failing(tmp_path, name, content))
    assert message in error
    assert not streams


def test_no_samples(bad, tmp_path):
    streams, error = bad(wav(tmp_path, "none.wav", np.zeros(0)))
    assert "none.wav: holds no samples; replace it" in error
    assert not streams


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite(bad, tmp_path, value):
    samples = np.tile(NOISE, 3)
    samples[2 * RATE] = value
    streams, error = bad(wav(tmp_path, "nan.wav", samples, subtype="FLOAT"))
    assert "nan.wav: has NaN or infinite samples (at 2.000 s); repair it" in error
    assert not streams


def test_a_flac_that_ends_too_early(bad, tmp_path):
    path = tmp_path / wav(tmp_path, "cut.flac", np.tile(NOISE, 5))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    streams, error = bad("cut.flac")
    assert "cut.flac: is damaged after" in error
    assert not streams


def test_a_wav_that_ends_too_early_is_taken_as_far_as_it_goes(bad, tmp_path):
    path = tmp_path / wav(tmp_path, "cut.wav", NOISE)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 3000])
    streams, error = bad("cut.wav")
    assert error is None
    assert [len(x) for x, _ in streams] == [3000, 3000]


@pytest.mark.parametrize(
    ("samples", "fs", "subtype"),
    [
        (NOISE[:1], RATE, None),
        (NOISE[:80], RATE, None),
        (NOISE[:2000], RATE, "PCM_U8"),
        (NOISE[:2000], RATE, "PCM_24"),
        (NOISE[:2000], RATE, "DOUBLE"),
        (NOISE, 96000, None),
        (NOISE[:500], 1000, None),
        (NOISE[:1], 192000, None),
        (np.tile(NOISE[:3000, None], 6), RATE, None),
        (np.zeros(4000), RATE, None),
        (np.full(4000, 0.7), RATE, None),
        (np.sign(NOISE), RATE, None),
        (1e4 * NOISE, RATE, "FLOAT"),
        (1e-30 * NOISE, RATE, "DOUBLE"),
    ],
)
def test_odd_recordings_have_results(bad, tmp_path, samples, fs, subtype):
    streams, error = bad(wav(tmp_path, "odd.wav", samples, fs, subtype))
    assert error is None
    assert len(streams) == 2
    for stream, rate in streams:
        assert (rate, len(stream)) == (fs, len(samples))
        assert np.isfinite(stream).all()
        assert stream.any() == bool(samples.any() and np.abs(samples).max() > 1e-20) or fs != RATE


def test_a_folder_without_audio_and_one_that_is_the_output(bad, tmp_path, tf_moe_exp):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/readme.txt").write_text("nothing here")
    _, error = bad("folder")
    assert "folder: no audio files in it; give a folder with recordings" in error
    _, error = bad("out")
    assert "out: is --output as well; write to another folder" in error


def test_a_pipe_is_no_file(bad, tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    _, error = bad("pipe.wav")
    assert "pipe.wav: is not a regular file" in error


def test_a_file_without_permission(bad, tmp_path, monkeypatch):
    path = write_noise(tmp_path / "secret.wav", 0.1)
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read anything
        honest = open

        def refuse(file, *arguments, **options):
            if str(file) == str(path):
                raise PermissionError(13, "Permission denied")
            return honest(file, *arguments, **options)

        monkeypatch.setattr("builtins.open", refuse)
    _, error = bad("secret.wav")
    assert "secret.wav: cannot be read: Permission denied" in error


def test_an_output_that_would_replace_an_input(tmp_path, tf_moe_exp):
    first = write_noise(tmp_path / "a.wav", 0.1)
    second = write_noise(tmp_path / "a_spk1.wav", 0.1)
    words = [first, second, "--model", tf_moe_exp, "--output", tmp_path]
    with pytest.raises(UserError, match=r"a_spk1\.wav: is an input as well; choose another"):
        main([str(word) for word in words])


def test_an_output_that_cannot_be_made(tmp_path, tf_moe_exp):
    path = write_noise(tmp_path / "a.wav", 0.1)
    words = [path, "--model", tf_moe_exp, "--output", path / "out"]
    with pytest.raises(UserError, match=r"--output .*: cannot be made"):
        main([str(word) for word in words])


def test_a_full_disk(tmp_path, tf_moe_exp):
    """A limit on the size of files stands for it: the system refuses to write on."""
    path = write_noise(tmp_path / "long.wav", 3)
    short = write_noise(tmp_path / "short.wav", 0.3)
    command = [sys.executable, "-m", "espnet2_sepx.bin.separate", path, short]
    done = subprocess.run(
        [str(word) for word in (*command, "--model", tf_moe_exp, "--output", tmp_path / "out")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "long_spk1.wav: cannot be written" in errors[0]
    assert "free some space" in errors[0]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("separate.json", "separate.jsonl", "short_spk1.wav", "short_spk2.wav")
    ]


# --- the model ------------------------------------------------------------------------------------


def refused(tmp_path, model: object, *options: str) -> str:
    path = write_noise(tmp_path / "a.wav", 0.1)
    words = [path, "--model", model, "--output", tmp_path / "out", *options]
    with pytest.raises(UserError) as caught:
        main([str(word) for word in words])
    assert not (tmp_path / "out").exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_models_that_are_none(tmp_path, tf_moe_exp):
    assert "--model nothing: there is no such path" in refused(tmp_path, "nothing")
    (tmp_path / "empty").mkdir()
    assert "empty: no config.yaml in it" in refused(tmp_path, tmp_path / "empty")
    (tmp_path / "model.zip").write_text("no zip")
    assert "expected a zip file" in refused(tmp_path, tmp_path / "model.zip")
    exp = shutil.copytree(tf_moe_exp, tmp_path / "exp")
    (exp / "valid.si_snr_loss.best.pth").unlink()
    assert "name one with --model_file" in refused(tmp_path, exp)
    (exp / "config.yaml").write_text("separator: [tf_moe\n")
    assert "config.yaml: is not plain YAML" in refused(tmp_path, exp)
    (exp / "config.yaml").write_text("just a sentence\n")
    assert "expected 'key: value' lines" in refused(tmp_path, exp)


def test_a_zip_that_climbs_out(tmp_path, tf_moe_exp):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../evil.txt", "evil")
    message = refused(tmp_path, tmp_path / "evil.zip")
    assert "would be unpacked outside of the folder; do not use this file" in message


def test_a_checkpoint_with_code_in_it(tmp_path, tf_moe_exp):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    exp = shutil.copytree(tf_moe_exp, tmp_path / "exp")
    (exp / "valid.si_snr_loss.best.pth").write_bytes(pickle.dumps({"encoder": Evil()}))
    assert "more than the tensors of a model; do not use this file" in refused(tmp_path, exp)
    assert not (tmp_path / "executed").exists()


def test_a_configuration_of_another_model(tmp_path, tf_moe_exp, skim_exp):
    exp = shutil.copytree(tf_moe_exp, tmp_path / "exp")
    shutil.copy(skim_exp / "config.yaml", exp)
    assert "does not fit" in refused(tmp_path, exp)
    assert "must be above 0, got 0" in refused(tmp_path, tf_moe_exp, "--chunk_s", "0")
