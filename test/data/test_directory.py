"""Data directories: what is wrong with them is found and named."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from data_directory import make_data_directory

from espnet2_sepx.data.directory import find_problems, read_data_directory
from espnet2_sepx.errors import UserError

VALIDATE = Path(__file__).parents[2] / "utils" / "validate_data_dir.py"


def problems(path, check_audio=False):
    return list(find_problems(read_data_directory(path), check_audio))


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_good_directory_has_no_problem(tmp_path):
    path = make_data_directory(tmp_path / "test")
    assert problems(path, check_audio=True) == []
    data = read_data_directory(path)
    assert list(data.signals) == ["wav.scp", "noise1.scp", "spk1.scp", "spk2.scp"]
    assert set(data.tables) == {"utt2spk", "utt2overlap"}


@pytest.mark.parametrize("name", ["wav.scp", "spk2.scp", "utt2spk", "spk2utt"])
def test_a_missing_table_is_named(tmp_path, name):
    path = make_data_directory(tmp_path / "test")
    (path / name).unlink()
    with pytest.raises(UserError, match=f"test/{name}: is missing"):
        read_data_directory(path)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(UserError, match="none: no such data directory; prepare it first"):
        read_data_directory(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("wav.scp", "a_b_0", "b_b_0", "wav.scp: is not sorted: 'a_b_1' follows 'b_b_0'"),
        ("spk2.scp", "c_a_0 ", "d_a_0 ", "spk2.scp: lacks 1 of the keys of wav.scp, first 'c_a_0'"),
        ("utt2overlap", "c_a_0 ", "d_a_0 ", "utt2overlap: has 1 key(s) that are not in wav.scp"),
        ("utt2overlap", "0.5", "1.5", "utt2overlap: a_b_0 has '1.5', expected a ratio from 0 to 1"),
        ("utt2overlap", "0.5", "half", "utt2overlap: a_b_0 has 'half'"),
        ("spk2utt", "a_b_0", "a_b_2", "spk2utt: does not agree with utt2spk"),
        ("source2spk", "b-0", "c-0", "source2spk: lacks 1 of the keys of source.scp, first 'b-0'"),
        ("spk1.scp", " /", " ", "spk1.scp: a_b_0: path"),
        ("spk1.scp", "_a_b_0.wav", "_x.wav", "spk1.scp: a_b_0: there is no file"),
        ("source.scp", "a-0.wav", "x.wav", "source.scp: a-0: there is no file"),
    ],
)
def test_each_fault_is_found(tmp_path, name, old, new, message):
    path = make_data_directory(tmp_path / "test")
    replace(path / name, old, new)
    assert any(problem.startswith(f"{path}/{message}") for problem in problems(path))


def test_keys_serve_as_file_names(tmp_path):
    path = make_data_directory(tmp_path / "test")
    for table in path.iterdir():
        table.write_text(table.read_text().replace("c_a_0 ", "c/a_0 ").replace(" c_a_0", " c/a_0"))
    assert problems(path) == [
        f"{path}/wav.scp: key 'c/a_0' has a slash; it must serve as a file name"
    ]


@pytest.mark.parametrize(
    ("signal", "fs", "message"),
    [
        (np.full((1000, 2), 0.1), 8000, "has 2 channels, expected 1"),
        (np.full(1000, 0.1), 16000, "sampling rate is 16000 Hz, but .* has 8000 Hz"),
        (np.full(999, 0.1), 8000, "has 999 samples, but the mixture .* has 1000"),
        (np.zeros(0), 8000, "has no samples"),
        (None, 0, "cannot be read as audio"),
    ],
)
def test_audio_is_checked_when_asked_for(tmp_path, signal, fs, message):
    path = make_data_directory(tmp_path / "test")
    file = Path(read_data_directory(path).signals["spk2.scp"]["a_b_0"])
    if signal is None:
        file.write_text("no audio")
    else:
        soundfile.write(file, signal, fs)
    assert problems(path) == []
    (problem,) = problems(path, check_audio=True)
    assert problem.startswith(str(file))
    with pytest.raises(UserError, match=message):
        raise UserError(problem)


def test_the_command_shows_the_first_problems(tmp_path):
    path = make_data_directory(tmp_path / "test")
    command = [sys.executable, VALIDATE, "--check_audio", "true", path]
    good = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, f"{path}: 3 utterances, no problem\n")
    for file in (tmp_path / "test_audio").iterdir():
        file.unlink()
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert bad.stderr.count("\n") == 11
    assert bad.stderr.startswith(f"error: {path}/wav.scp: a_b_0: there is no file")
