"""The permutation search finds the best order, by either method."""

from __future__ import annotations

import numpy as np
import pytest

from espnet2_sepx.score import permute
from espnet2_sepx.score.permute import best_permutation, permutation_by_si_snr


@pytest.mark.parametrize("count", [2, 3, 4])
def test_hungarian_and_exhaustive_agree(count, monkeypatch):
    score_RE = np.random.default_rng(count).standard_normal((count, count))
    exhaustive = best_permutation(score_RE)
    monkeypatch.setattr(permute, "EXHAUSTIVE_UP_TO", 0)
    assert best_permutation(score_RE) == exhaustive


@pytest.mark.parametrize("count", [3, 6])
def test_a_hidden_order_is_found(speech, count):
    references = [speech(seed, seconds=0.5) for seed in range(count)]
    hidden = tuple(int(i) for i in np.random.default_rng(0).permutation(count))
    estimates = [np.zeros(0)] * count
    for reference, place in enumerate(hidden):
        estimates[place] = -2 * references[reference] + 0.1 * speech(50 + reference, seconds=0.5)
    assert permutation_by_si_snr(references, estimates) == hidden


def test_ties_keep_the_order(speech):
    estimate = speech(5)
    assert permutation_by_si_snr([speech(0), speech(1)], [estimate, estimate]) == (0, 1)


def test_a_silent_estimate_goes_where_it_harms_least(speech):
    first, second = speech(0), speech(1)
    silence = np.zeros_like(first)
    assert permutation_by_si_snr([first, second], [silence, first]) == (1, 0)
    assert permutation_by_si_snr([silence, second], [second, silence]) == (1, 0)
    assert permutation_by_si_snr([silence, silence], [first, second]) == (0, 1)


def test_bad_matrices_are_refused():
    with pytest.raises(ValueError, match="square"):
        best_permutation(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="finite"):
        best_permutation(np.full((2, 2), np.nan))
