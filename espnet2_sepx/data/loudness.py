"""Speech levels: the power of the active parts, in dB of full scale.

An energy-gated level is used rather than LUFS. It is close to the active speech level of ITU-T
P.56 that wsj0-2mix was made with, has no lower limit on length (LUFS needs 0.4 s), treats 8 kHz
like 16 kHz (the K-weighting of LUFS has its shelf at 1.5 kHz and up), and needs no dependency.
"""

from __future__ import annotations

import math

import numpy as np

from espnet2_sepx.data.overlap import activity, block_length


def active_level_db(signal: np.ndarray, fs: int) -> float:
    """``(N,)`` -> level of the active blocks in dB re full scale; ``-inf`` for silence."""
    samples = np.repeat(activity(signal, fs), block_length(fs))[: len(signal)]
    return power_db(signal[samples])


def power_db(signal: np.ndarray) -> float:
    """Mean power in dB re full scale; ``-inf`` for silence and for no samples."""
    power = float(np.mean(np.square(signal))) if len(signal) else 0.0
    return 10 * math.log10(power) if power > 0 else -math.inf


def db_to_gain(db: float) -> float:
    return 10 ** (db / 20)


def gain_to_db(gain: float) -> float:
    return 20 * math.log10(gain)
