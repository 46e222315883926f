"""Files appear whole or not at all; errors name the path and the remedy."""

import argparse
import os
import subprocess
import sys

import pytest

from espnet2_sepx.errors import UserError
from espnet2_sepx.files import atomic_dir, atomic_write, str2bool


def test_a_written_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    for text in ("old\n", "new\n"):
        with atomic_write(path) as stream:
            stream.write(text)
    assert path.read_text() == "new\n"
    assert os.listdir(path.parent) == ["table.csv"]


def test_bytes_are_written_as_they_are(tmp_path):
    with atomic_write(tmp_path / "x.bin", "wb") as stream:
        stream.write(b"a\r\n\x00")
    assert (tmp_path / "x.bin").read_bytes() == b"a\r\n\x00"


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old\n")
    with pytest.raises(RuntimeError, match="halfway"), atomic_write(path) as stream:
        stream.write("ne")
        raise RuntimeError("halfway")
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_folder_replaces_the_old_one_only_when_complete(tmp_path):
    path = tmp_path / "wavs"
    with atomic_dir(path) as folder:
        (folder / "a.wav").touch()
    with pytest.raises(RuntimeError), atomic_dir(path) as folder:
        (folder / "b.wav").touch()
        raise RuntimeError
    assert os.listdir(path) == ["a.wav"]
    with atomic_dir(path) as folder:
        (folder / "c.wav").touch()
    assert os.listdir(path) == ["c.wav"]
    assert os.listdir(tmp_path) == ["wavs"]


def test_leftovers_of_a_killed_process_go_and_those_of_a_running_one_stay(tmp_path):
    code = (
        "import os, signal, sys; from espnet2_sepx.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as stream: os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "x"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # killed, not yet collected
    (killed,) = os.listdir(tmp_path)
    running = killed.rpartition("-")[0] + f"-{os.getppid()}"
    (tmp_path / running).touch()
    with atomic_write(path) as stream:
        stream.write("whole")
    assert sorted(os.listdir(tmp_path)) == sorted([running, "x"])
    process.wait()


@pytest.mark.parametrize("write", [atomic_write, atomic_dir])
def test_an_unwritable_place_is_named(tmp_path, write):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "below" / "x"
    with (
        pytest.raises(UserError, match=r"cannot write .*x: .*; choose a folder you may write to"),
        write(path),
    ):
        pass


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="cannot write"), atomic_write(tmp_path / "x") as stream:
        stream.write("text")
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_true_and_false(text, value):
    assert str2bool(text) is value


@pytest.mark.parametrize("text", ["yes", "1", ""])
def test_other_booleans_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected true or false"):
        str2bool(text)
