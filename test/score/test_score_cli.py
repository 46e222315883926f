"""The command as a user runs it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from espnet2_sepx.bin import score
from espnet2_sepx.errors import UserError


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "espnet2_sepx.bin.score", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_everything_in_two_processes(file_set):
    files = file_set(3)
    (files.ref / "utt2overlap").write_text("utt0 0.1\nutt1 0.6\nutt2 0.9\n")
    files.rewrite("est/spk1", "utt2", np.zeros_like)
    done = run("--ref", files.ref, "--est", files.est, "--out", files.out, "--nj", 2)
    assert done.returncode == 0, done.stderr
    assert "| SI-SNRi (dB) |" in done.stdout
    summary = json.loads((files.out / "summary.json").read_text())
    assert (summary["set"], summary["fs"], summary["count"]) == ("ref", 8000, 3)
    assert [bucket["name"] for bucket in summary["buckets"]] == [
        "all",
        "0-25 %",
        "50-75 %",
        "75-100 %",
    ]
    with open(files.out / "utterances.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for metric, entry in summary["metrics"].items():
        values = [float(row[metric]) for row in rows if row[metric]]
        assert (entry["count"], entry["missing"]) == (len(values), 1) == (2, 1)
        assert entry["mean"] == pytest.approx(np.mean(values), abs=1e-4)
    assert "silent estimate (si_snr sdr stoi estoi pesq)" in rows[2]["note"]
    assert sorted(path.name for path in files.out.iterdir()) == [
        "RESULTS.md",
        "summary.json",
        "utterances.csv",
    ]


def test_a_second_run_writes_the_same_bytes(file_set, capsys):
    files = file_set(2)
    arguments = ["--ref", str(files.ref), "--est", str(files.est), "--out", str(files.out)]
    contents = []
    for _ in range(2):
        score.main(arguments)
        contents.append([path.read_bytes() for path in sorted(files.out.iterdir())])
    assert contents[0] == contents[1]


def test_errors_are_one_line_and_leave_nothing(file_set):
    files = file_set(1, 0.2)
    files.scp["est/spk1"] = {"other": "x.wav"}
    files.write_scp()
    done = run("--ref", files.ref, "--est", files.est, "--out", files.out)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not files.out.exists()


def test_asked_metrics_decide_the_columns(file_set, capsys):
    files = file_set(1, 0.5)
    arguments = ["--ref", str(files.ref), "--est", str(files.est), "--out", str(files.out)]
    score.main([*arguments, "--metrics", "sdr", "--fs", "8000", "--set_name", "mini"])
    summary = json.loads((files.out / "summary.json").read_text())
    assert summary["set"] == "mini"
    assert list(summary["metrics"]) == ["sdr", "sdri"]


def test_a_wrong_rate_and_job_count_are_told(file_set, tmp_path):
    files = file_set(1, 0.2)
    arguments = ["--ref", str(files.ref), "--est", str(files.est), "--out", str(files.out)]
    with pytest.raises(UserError, match=r"wav: 8000 Hz, expected 16000 Hz"):
        score.main([*arguments, "--fs", "16000"])
    with pytest.raises(UserError, match="--nj"):
        score.main([*arguments, "--nj", "0"])


def test_help_needs_no_heavy_import():
    check = (
        "import sys, espnet2_sepx.bin.score\n"
        "print(sorted({'numpy', 'torch', 'soundfile', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
