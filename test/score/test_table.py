"""Files are paired and checked, and what cannot be scored is missing, not averaged."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from espnet2_sepx.errors import UserError
from espnet2_sepx.score.table import (
    Row,
    list_utterances,
    sample_rate_of,
    score_utterance,
    score_utterances,
    write_table,
)

RATE = 8000
FAST = ("si_snr", "sdr")


def score_first(files, metrics=FAST):
    return score_utterance(list_utterances(files.ref, files.est)[0], RATE, metrics)


# --- laws ----------------------------------------------------------------------------------------


def test_permuting_the_references_permutes_the_scores(file_set):
    files = file_set()
    metrics = ("si_snr", "sdr", "stoi", "estoi", "pesq")
    rows = [score_first(files, metrics)]
    files.scp["ref/spk1"], files.scp["ref/spk2"] = files.scp["ref/spk2"], files.scp["ref/spk1"]
    files.write_scp()
    rows.append(score_first(files, metrics))
    assert rows[0].permutation == rows[1].permutation[::-1]
    for column, values in rows[0].values.items():
        assert values == pytest.approx(rows[1].values[column][::-1], abs=1e-9)
        assert rows[0].mean(column) == pytest.approx(rows[1].mean(column), abs=1e-9)


def test_improvement_is_the_difference_to_the_mixture(file_set):
    files = file_set()
    separated = score_first(files)
    files.scp["est/spk1"] = files.scp["est/spk2"] = files.scp["ref/wav"]
    files.write_scp()
    mixture = score_first(files)
    for name in ("si_snr", "sdr"):
        assert mixture.values[f"{name}i"] == [0.0, 0.0]
        difference = np.subtract(separated.values[name], mixture.values[name])
        assert separated.values[f"{name}i"] == pytest.approx(list(difference))
        assert min(difference) > 10


def test_swapped_estimates_are_recognised(file_set):
    files = file_set()
    rows = score_utterances(list_utterances(files.ref, files.est), RATE, list(FAST))
    assert [row.permutation for row in rows] == [(0, 1), (1, 0)]


def test_processes_do_not_change_the_rows(file_set):
    files = file_set(3, 1.0)
    utterances = list_utterances(files.ref, files.est)
    one, two = (score_utterances(utterances, RATE, ["si_snr"], nj) for nj in (1, 2))
    assert one == two


# --- missing values ------------------------------------------------------------------------------


def test_a_silent_estimate_leaves_its_cells_and_the_mean_empty(file_set, tmp_path):
    files = file_set()
    files.rewrite("est/spk2", "utt0", np.zeros_like)
    row = score_first(files)
    assert row.values["si_snr"][0] > 10
    assert row.values["si_snr"][1] is None
    assert row.values["si_snri"][1] is None
    assert row.mean("si_snr") is None
    assert row.notes == ["spk2: silent estimate (si_snr sdr)"]
    write_table(tmp_path / "utterances.csv", [row])
    with open(tmp_path / "utterances.csv", newline="") as stream:
        (cells,) = csv.DictReader(stream)
    assert cells["si_snr_spk2"] == cells["si_snr"] == ""
    assert float(cells["si_snr_spk1"]) == pytest.approx(row.values["si_snr"][0], abs=1e-4)
    assert cells["permutation"] == "1 2"
    assert "silent estimate" in cells["note"]


def test_an_unscorable_mixture_costs_only_the_improvement(file_set):
    files = file_set()
    files.rewrite("ref/wav", "utt0", lambda x: np.where(np.arange(len(x)) == 3, np.nan, x))
    row = score_first(files)
    assert None not in row.values["si_snr"]
    assert row.values["si_snri"] == [None, None]
    assert "spk1 against mixture: not finite estimate" in row.notes[0]


def test_zero_length_files_are_missing_values(file_set):
    files = file_set()
    for name in files.scp:
        files.rewrite(name, "utt0", lambda x: x[:0])
    row = score_first(files)
    assert row.mean("si_snr") is None
    assert "empty reference" in row.notes[0]


def test_a_clipped_estimate_is_noted(file_set):
    files = file_set()
    files.rewrite("est/spk1", "utt0", lambda x: np.clip(50 * x, -1, 1))
    assert any("estimate 1 is clipped" in note for note in score_first(files).notes)


def test_small_length_differences_are_cut_and_noted(file_set):
    files = file_set()
    before = score_first(files)
    files.rewrite("est/spk1", "utt0", lambda x: np.concatenate([x, np.zeros(200)]))
    row = score_first(files)
    assert row.values == before.values
    assert row.notes == ["lengths differ: cut to 12000 of up to 12200 samples"]


# --- errors --------------------------------------------------------------------------------------


def test_large_length_differences_name_the_file(file_set):
    files = file_set()
    path = files.rewrite("est/spk1", "utt0", lambda x: x[:-300])
    with pytest.raises(UserError, match=f"{path}: 11700 samples, but .* has 12000"):
        score_first(files)


def test_a_wrong_rate_names_the_file(file_set):
    files = file_set()
    path = files.rewrite("est/spk2", "utt0", lambda x: x, rate=16000)
    with pytest.raises(UserError, match=f"{path}: 16000 Hz, expected 8000 Hz"):
        score_first(files)


def test_two_channels_name_the_file(file_set):
    files = file_set()
    path = files.rewrite("est/spk2", "utt0", lambda x: np.stack([x, x], axis=1))
    with pytest.raises(UserError, match=f"{path}: 2 channels"):
        score_first(files)


def test_unreadable_and_absent_files_are_told_apart(file_set, tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("no audio")
    with pytest.raises(UserError, match=r"text.wav: not an audio file"):
        sample_rate_of(str(text))
    with pytest.raises(UserError, match=r"absent.wav: not found"):
        sample_rate_of(str(tmp_path / "absent.wav"))


def test_missing_estimates_are_listed(file_set):
    files = file_set(5, 0.1)
    for index in range(4):
        del files.scp["est/spk2"][f"utt{index}"]
    files.write_scp()
    with pytest.raises(UserError, match=r"4 of 5 .*\(utt0, utt1, utt2, \.\.\.\); separate"):
        list_utterances(files.ref, files.est)


def test_a_model_for_fewer_speakers_is_an_error(file_set):
    files = file_set(1, 0.1)
    (files.est / "spk2.scp").unlink()
    with pytest.raises(UserError, match=r"spk2\.scp: not found, the references have 2 speakers"):
        list_utterances(files.ref, files.est)


def test_overlap_is_read_and_checked(file_set):
    files = file_set(2, 0.1)
    (files.ref / "utt2overlap").write_text("utt0 0.25\n")
    assert [u.overlap for u in list_utterances(files.ref, files.est)] == [0.25, None]
    (files.ref / "utt2overlap").write_text("utt0 25\n")
    with pytest.raises(UserError, match=r"utt0: expected a ratio in 0\.\.1, got '25'"):
        list_utterances(files.ref, files.est)


def test_errors_of_workers_reach_the_caller(file_set):
    files = file_set(3, 0.5)
    path = files.rewrite("est/spk1", "utt1", lambda x: x, rate=16000)
    with pytest.raises(UserError, match=path):
        score_utterances(list_utterances(files.ref, files.est), RATE, ["si_snr"], nj=2)


def test_a_row_mean_is_over_all_speakers():
    row = Row("u", 1.0, None, (0, 1), {"sdr": [2.0, 4.0], "pesq": [None, 3.0]})
    assert row.mean("sdr") == 3.0
    assert row.mean("pesq") is None
