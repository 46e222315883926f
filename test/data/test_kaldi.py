"""Kaldi tables."""

import shutil
import subprocess

import pytest

from espnet2_sepx.data.kaldi import (
    read_scp,
    spk2utt_from_utt2spk,
    utt2spk_from_spk2utt,
    write_scp,
)
from espnet2_sepx.errors import UserError

# An upper-case letter, a prefix, signs below and above letters, bytes beyond ASCII.
KEYS = ["b", "a", "a-b", "a_b", "A", "a b".replace(" ", "!"), "é", "z", "10", "9"]


def test_what_is_written_is_read(tmp_path):
    table = {key: f"/path with blanks/{key}.wav" for key in KEYS}
    write_scp(tmp_path / "wav.scp", table)
    assert read_scp(tmp_path / "wav.scp") == table
    write_scp(tmp_path / "again.scp", dict(reversed(table.items())))
    assert (tmp_path / "again.scp").read_bytes() == (tmp_path / "wav.scp").read_bytes()


@pytest.mark.skipif(shutil.which("sort") is None, reason="needs sort")
def test_order_is_that_of_sort_in_the_c_locale(tmp_path):
    write_scp(tmp_path / "wav.scp", dict.fromkeys(KEYS, "x"))
    command = ["sort", "-c", tmp_path / "wav.scp"]
    assert subprocess.run(command, env={"LC_ALL": "C"}, check=False).returncode == 0


def test_reading_keeps_the_order_of_lines_and_takes_any_blanks(tmp_path):
    (tmp_path / "t").write_text("b \t 1 2 \na\t3")
    assert list(read_scp(tmp_path / "t").items()) == [("b", "1 2"), ("a", "3")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a 1\nb\n", r"t:2: expected '<key> <value>', got 'b'"),
        (b"a 1\n\n", r"t:2: expected '<key> <value>', got ''"),
        (b"a 1\nb 2\na 3\n", r"t:3: key 'a' is there twice"),
        (b"a \xff\n", r"t: is not UTF-8 text"),
        (None, r"t: no such file"),
    ],
)
def test_faults_name_file_and_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "t").write_bytes(text)
    with pytest.raises(UserError, match=message):
        read_scp(tmp_path / "t")


@pytest.mark.parametrize("bad", [{"a b": "1"}, {"": "1"}, {"a": ""}, {"a": "1\n2"}, {"a\n": "1"}])
def test_unwritable_entries_are_refused_and_nothing_is_written(tmp_path, bad):
    with pytest.raises(UserError, match="cannot write key"):
        write_scp(tmp_path / "t", {"ok": "1"} | bad)
    assert list(tmp_path.iterdir()) == []


def test_speakers_and_utterances_are_reverses():
    utt2spk = {"u3": "s1", "u1": "s1", "u2": "s0"}
    spk2utt = spk2utt_from_utt2spk(utt2spk)
    assert spk2utt == {"s1": "u1 u3", "s0": "u2"}
    assert utt2spk_from_spk2utt(spk2utt) == utt2spk


def test_an_utterance_has_one_speaker():
    with pytest.raises(UserError, match=r"utterance 'u1' belongs to 's0' and 's1'"):
        utt2spk_from_spk2utt({"s0": "u1", "s1": "u2 u1"})
