"""Long conversations from single utterances: turns, pauses, and turns that overlap.

Mixtures for training are short and overlap all the time; recordings of people are neither.

Legend: S speakers, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float32]


def conversation(
    utterances: Sequence[Sequence[Signal]],
    seconds: float,
    fs: int,
    rng: np.random.Generator,
    pause_s: tuple[float, float] = (0.0, 10.0),
    overlap: tuple[float, float] = (0.0, 0.4),
    overlap_probability: float = 0.5,
) -> NDArray[np.float32]:
    """References of a conversation, ``(S, N)``; their sum is the mixture.

    Turns are whole utterances, drawn by turns from a shuffled list of each speaker. A turn begins
    after a pause, or (with ``overlap_probability``) while the one before still goes on.

    Args:
        utterances: of each speaker, at least one.
        seconds: length; what does not fit is cut.
        fs: in Hz.
        rng: decides everything.
        pause_s: range of pauses.
        overlap: range of the part of a turn that lies over the one before.
        overlap_probability: of a turn to begin early.
    """
    samples = round(seconds * fs)
    references = np.zeros((len(utterances), samples), np.float32)
    waiting: list[list[Signal]] = [[] for _ in utterances]
    last, end = -1, 0  # speaker and end of the turn before
    while end < samples:
        speaker = int(rng.integers(len(utterances)))
        if not waiting[speaker]:
            waiting[speaker] = [
                utterances[speaker][i] for i in rng.permutation(len(utterances[speaker]))
            ]
        turn = waiting[speaker].pop()
        if speaker != last and last >= 0 and rng.random() < overlap_probability:
            start = end - round(float(rng.uniform(*overlap)) * min(len(turn), end))
        else:
            start = end + round(float(rng.uniform(*pause_s)) * fs)
        part = turn[: max(samples - start, 0)]
        references[speaker, start : start + len(part)] += part
        last, end = speaker, max(end, start + len(turn))
    return references
