"""Means, intervals, buckets and the worst list count what is there and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from espnet2_sepx.score.summary import bootstrap_interval, markdown, summarise, write_summary
from espnet2_sepx.score.table import Row


def make_rows(values, overlaps=None):
    overlaps = overlaps or [None] * len(values)
    return [
        Row(f"utt{i}", 2.0, overlap, (0, 1), {"si_snri": [value, value], "stoi": [0.5, 0.7]})
        for i, (value, overlap) in enumerate(zip(values, overlaps, strict=True))
    ]


def test_the_interval_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(10, 3, size=400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.normal(0, 1, size=40), seed, resamples=200)
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_one_value_has_no_interval():
    assert bootstrap_interval(np.array([3.0])) is None
    summary = summarise(make_rows([3.0]), "test", 8000)
    assert summary["metrics"]["si_snri"]["ci_low"] is None
    assert "| SI-SNRi (dB) | 3.00 | - | 1 | 0 |" in markdown(summary)


def test_missing_values_are_counted_and_never_averaged():
    summary = summarise(make_rows([10.0, None, 20.0]), "test", 8000)
    entry = summary["metrics"]["si_snri"]
    assert (entry["mean"], entry["count"], entry["missing"]) == (15.0, 2, 1)
    assert summary["metrics"]["stoi"]["missing"] == 0
    assert "utt1" not in [worst["utt"] for worst in summary["worst"]]


def test_all_missing_is_no_number():
    summary = summarise(make_rows([None, None]), "test", 8000)
    assert summary["metrics"]["si_snri"]["mean"] is None
    assert "| SI-SNRi (dB) | - | - | 0 | 2 |" in markdown(summary)


def test_buckets_share_the_utterances_among_them():
    overlaps = [0.0, 0.1, 0.25, 0.9, 1.0, None]
    summary = summarise(make_rows([1.0, 3, 5, 7, 9, 11], overlaps), "test", 8000)
    found = {
        bucket["name"]: (bucket["count"], bucket["metrics"]["si_snri"])
        for bucket in summary["buckets"]
    }
    assert found == {"all": (6, 6.0), "0-25 %": (2, 2.0), "25-50 %": (1, 5.0), "75-100 %": (2, 8.0)}


def test_the_worst_come_first():
    summary = summarise(make_rows([float(v) for v in range(30, 0, -1)]), "test", 8000)
    assert [worst["si_snri"] for worst in summary["worst"]] == list(range(1, 11))


def test_files_are_written_and_hold_the_same_numbers(tmp_path):
    summary = summarise(
        make_rows([10.0, 12.0], [0.1, 0.9]), "test", 8000, {"pesq": "pesq is not installed"}
    )
    write_summary(tmp_path, summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| STOI | 0.600 | 0.600 .. 0.600 | 2 | 0 |" in text
    assert "Not computed: pesq (pesq is not installed)." in text
    assert "| 75-100 % | 1 | 12.00 | 0.600 |" in text


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        summarise([], "test", 8000)
