"""Where a clean signal is active, and how much two of them overlap.

The detector is a level gate on 10 ms blocks, for signals that are clean by construction: active is
what lies within 25 dB of the loudest 30 ms, and pauses of up to 200 ms between active parts count
as active, as in the speech level meter of ITU-T P.56. Levels, trimming and overlap all use it, so
there is one definition of speech in a corpus. It is no detector for noisy recordings.

The overlap ratio of two sources is (time both are active) / (time at least one is active).

Legend: N samples, T blocks of 10 ms.
"""

from __future__ import annotations

import itertools

import numpy as np

_RANGE_DB = 25.0
_LONGEST_PAUSE_BLOCKS = 20
_SILENCE_POWER = 1e-10  # -100 dB of full scale: below it nothing is active


def block_length(fs: int) -> int:
    """Samples in a block of 10 ms."""
    return fs // 100


def activity(signal_N: np.ndarray, fs: int) -> np.ndarray:
    """``(N,) -> (T,)`` bool with T = ceil(N / block); all False for silence."""
    block = block_length(fs)
    count = -(-len(signal_N) // block)
    padded = np.zeros(count * block)
    padded[: len(signal_N)] = signal_N
    power_T = np.mean(padded.reshape(count, block) ** 2, axis=1)
    if power_T.max(initial=0.0) < _SILENCE_POWER:
        return np.zeros(count, dtype=bool)
    power_T = np.convolve(np.pad(power_T, 1), np.full(3, 1 / 3), mode="valid")
    return _bridge_pauses(power_T > power_T.max() * 10 ** (-_RANGE_DB / 10))


def _bridge_pauses(active_T: np.ndarray) -> np.ndarray:
    bridged_T = active_T.copy()
    positions = np.flatnonzero(active_T)
    for left, right in itertools.pairwise(positions):
        if 1 < right - left <= _LONGEST_PAUSE_BLOCKS + 1:
            bridged_T[left:right] = True
    return bridged_T


def active_span(signal_N: np.ndarray, fs: int) -> tuple[int, int]:
    """First and one-past-last active sample; (0, 0) for silence."""
    positions = np.flatnonzero(activity(signal_N, fs))
    if not len(positions):
        return 0, 0
    block = block_length(fs)
    return int(positions[0]) * block, min(int(positions[-1] + 1) * block, len(signal_N))


def overlap_ratio(first_N: np.ndarray, second_N: np.ndarray, fs: int) -> float:
    """Overlap of two references of one length, 0..1; 0 when neither is active."""
    first_T, second_T = activity(first_N, fs), activity(second_N, fs)
    either = np.count_nonzero(first_T | second_T)
    return float(np.count_nonzero(first_T & second_T) / either) if either else 0.0


def delay_for_overlap(first_N: np.ndarray, second_N: np.ndarray, fs: int, ratio: float) -> int:
    """Delay of the second signal, in samples >= 0, that comes closest to an overlap ratio.

    All delays (in steps of 10 ms) are tried; of equally good ones the smallest is taken. A ratio
    that the lengths do not allow gives the nearest possible one.
    """
    from scipy.signal import correlate  # takes seconds to import; few who import this need it

    first_T, second_T = activity(first_N, fs), activity(second_N, fs)
    both = np.rint(correlate(first_T.astype(float), second_T.astype(float), mode="full"))
    both = both[len(second_T) - 1 :]  # index = delay of the second in blocks
    both = np.append(both, 0.0)  # the second starts where the first ends
    either = np.count_nonzero(first_T) + np.count_nonzero(second_T) - both
    delay_blocks = int(np.argmin(np.abs(both / np.maximum(either, 1) - ratio)))
    return min(delay_blocks * block_length(fs), len(first_N))
