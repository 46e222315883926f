"""Mixtures in which not everything happens all the time, made from ones in which it does.

Speakers that overlap in part, and noise that comes and goes (DSN paper, section IV-A). Overlap here
is the paper's: (time between the first and last speech of both) / (that of the shorter one). It
differs from ``overlap.overlap_ratio``, which counts pauses and relates to the speech of either.

Legend: N samples.
"""

from __future__ import annotations

import numpy as np

from espnet2_sepx.data.overlap import active_span, activity, block_length

TRIES = 20
LEAST_ACTIVE_S = 0.5
"""Of each speaker in a training segment: SI-SNR of a silent reference is not defined."""


def overlap_of_spans(first_N: np.ndarray, second_N: np.ndarray, fs: int) -> float:
    """Common part of the two speech extents over the shorter of them, 0..1; 0 for silence."""
    (a, b), (c, d) = active_span(first_N, fs), active_span(second_N, fs)
    shorter = min(b - a, d - c)
    return max(0, min(b, d) - max(a, c)) / shorter if shorter else 0.0


def delayed_to_overlap(
    leading_N: np.ndarray, following_N: np.ndarray, fs: int, ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """Both signals, one length, the second so much later that ``ratio`` of the shorter overlaps.

    A ratio of 1 leaves them as they are, and so does one above what they have already.
    """
    (a, b), (c, d) = active_span(leading_N, fs), active_span(following_N, fs)
    common = round(ratio * min(b - a, d - c))
    block = block_length(fs)  # whole blocks, so that the detector sees the same speech
    delay = 0 if ratio >= 1 else max(0, round((b - common - c) / block) * block)
    return np.pad(leading_N, (0, delay)), np.pad(following_N, (delay, 0))


def windowed_noise(noise_N: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The noise in one window of ``share`` of its length at a random place, zero elsewhere."""
    kept = round(share * len(noise_N))
    start = rng.integers(0, len(noise_N) - kept + 1)
    out = np.zeros_like(noise_N)
    out[start : start + kept] = noise_N[start : start + kept]
    return out


def start_with_speech(
    references: list[np.ndarray], size: int, fs: int, rng: np.random.Generator
) -> int:
    """Random start of a segment of ``size`` samples in which everybody says something.

    Of ``TRIES`` starts, the first with ``LEAST_ACTIVE_S`` of each speaker, else the one with most
    of the quieter speaker.
    """
    block = block_length(fs)
    active = [np.concatenate([[0], np.cumsum(activity(signal, fs))]) for signal in references]
    best, most = 0, -1
    for _ in range(TRIES):
        start = int(rng.integers(0, len(references[0]) - size + 1))
        first, last = start // block, (start + size) // block
        least = min(int(total[last] - total[first]) for total in active)
        if least * block >= LEAST_ACTIVE_S * fs:
            return start
        if least > most:
            best, most = start, least
    return best
