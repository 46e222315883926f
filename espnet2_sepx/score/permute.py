"""Which estimate belongs to which reference.

Legend: R references, E estimates.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from espnet2_sepx.score.metrics import MAX_DB, Signal, pair_defect, si_snr

EXHAUSTIVE_UP_TO = 4  # S! orders; the Hungarian method above


def best_permutation(score_RE: NDArray[np.float64]) -> tuple[int, ...]:
    """Estimate for each reference, such that the sum of scores is the largest.

    Of equal sums the lexically first wins (up to four speakers): identical estimates keep order.

    Args:
        score_RE: finite scores of each pair, ``(R, E)`` with R = E.

    Returns:
        Index of the estimate for reference 0, 1, ...
    """
    count = len(score_RE)
    if score_RE.shape != (count, count):
        raise ValueError(f"score_RE must be square, got shape {score_RE.shape}")
    if not np.isfinite(score_RE).all():
        raise ValueError("score_RE must be finite")
    if count > EXHAUSTIVE_UP_TO:
        from scipy.optimize import linear_sum_assignment

        return tuple(int(index) for index in linear_sum_assignment(score_RE, maximize=True)[1])
    rows = np.arange(count)
    return max(permutations(range(count)), key=lambda order: score_RE[rows, list(order)].sum())


def permutation_by_si_snr(references: list[Signal], estimates: list[Signal]) -> tuple[int, ...]:
    """Best permutation by SI-SNR, the one used for every metric.

    A pair without a value (a silent signal, see ``metrics``) counts as worse than any other, so as
    many pairs as possible have values, and among those orders the sum of SI-SNR decides.
    """
    worst = -3 * MAX_DB * len(references)
    score_RE = np.full((len(references), len(estimates)), worst)
    for row, reference in enumerate(references):
        for column, estimate in enumerate(estimates):
            if pair_defect(reference, estimate) is None:
                score_RE[row, column] = si_snr(reference, estimate)
    return best_permutation(score_RE)
