"""Which stream of a new chunk continues which stream so far.

A separator names its outputs anew in every chunk. Two kinds of evidence, both as logarithms of
odds, are added: the overlap of the chunks (correlation of the waveforms, which decides wherever
there is speech in it), and the voices (``voices.py``), which decide where the overlap is silent.
Each joint keeps its confidence.

Legend: S streams, C channels, n samples of the overlap.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from espnet2_sepx.infer.voices import Summary, VoiceMeter, log_likelihood

Streams = NDArray[np.float32]

LOW_CONFIDENCE = 0.9
OVERLAP_ODDS = 12.0  # log odds of an overlap that agrees perfectly and holds enough speech
VOICE_ODDS = 6.0  # log odds that voices can reach: they resemble each other
_ENOUGH_S = 0.25  # of speech in the overlap
_RANGE_DB = 30.0  # speech in the overlap lies within this of the streams so far
_QUIETEST_POWER = 1e-12  # -120 dB of full scale is silence in any recording


@dataclass(frozen=True)
class Joint:
    """How two chunks were joined.

    Attributes:
        time_s: where the new chunk starts.
        overlap_s: what the chunks have in common.
        order: for each stream so far, the output of the new chunk that continues it.
        by: what decided, "overlap" or "voices"; "nothing" if both were silent.
        confidence: probability that the order is right, 0.5 if nothing speaks for it.
    """

    time_s: float
    overlap_s: float
    order: tuple[int, ...]
    by: str
    confidence: float

    @property
    def is_doubtful(self) -> bool:
        return self.confidence < LOW_CONFIDENCE

    def as_dict(self) -> dict[str, object]:
        facts = asdict(self)
        return facts | {key: round(facts[key], 3) for key in ("time_s", "overlap_s", "confidence")}


class Aligner:
    """Finds the order of each chunk, and learns the voices on the way.

    Args:
        streams: S.
        fs: in Hz.
    """

    def __init__(self, streams: int, fs: int) -> None:
        self._fs = fs
        self._meter = VoiceMeter(fs)
        self._voices = [Summary.empty() for _ in range(streams)]
        self._loudest = 0.0

    def learn(self, streams: Streams, confidence: float = 1.0) -> None:
        """Listen to a part ``(S, C, n)``, in the right order, that has not been heard before."""
        mono = streams.mean(1)
        share = max(2 * confidence - 1, 0.0)  # what may be wrong teaches nothing
        for voice, heard in zip(self._voices, self._meter.measure(mono), strict=True):
            voice.add(heard, share)
        if mono.shape[1]:
            block = max(self._fs // 10, 1)
            blocks = np.square(mono[:, : mono.shape[1] // block * block]).reshape(
                len(mono), -1, block
            )
            if blocks.size:
                self._loudest = max(0.9 * self._loudest, float(blocks.mean(2).sum(0).max()))

    def join(self, past: Streams, chunk: Streams, start: int) -> Joint:
        """Order of the streams of ``chunk`` ``(S, C, n + ...)`` after ``past`` ``(S, C, n)``."""
        shared = past.shape[2]
        overlap = self._overlap_evidence(past, chunk[:, :, :shared])
        voices = self._voice_evidence(chunk)
        order, odds = best_order(overlap + voices)
        parts = [abs(_odds_of(matrix, order)) for matrix in (overlap, voices)]
        by = "nothing" if max(parts) < 1e-6 else ("overlap", "voices")[int(np.argmax(parts))]
        confidence = 1 / (1 + math.exp(-odds))
        return Joint(start / self._fs, shared / self._fs, order, by, confidence)

    def _overlap_evidence(self, past: Streams, new: Streams) -> NDArray[np.float64]:
        """(S, S) log odds of pairs, from what distinguishes the streams in the overlap.

        What all streams have in common (the part of the mixture that a weak separator leaves in
        all of them) is removed first; the loudest parts count most, being the best separated.
        """
        past, new = (x - x.mean(0) for x in (past.astype(np.float64), new.astype(np.float64)))
        cross = np.einsum("icn,jcn->ij", past, new)
        energies = [float(np.square(x).sum()) for x in (past, new)]
        floor = _QUIETEST_POWER * past[0].size
        if min(energies) <= floor:
            return np.zeros_like(cross)
        # Seconds of speech: how many tenths of a second are as loud as speech is.
        block = max(self._fs // 10, 1)
        count = new.shape[2] // block
        power = np.square(new[:, :, : count * block]).reshape(*new.shape[:2], count, block)
        loud = power.mean((1, 3)).sum(0) > self._loudest * 10 ** (-_RANGE_DB / 10)
        enough = min(1.0, loud.sum() * 0.1 / _ENOUGH_S)
        return OVERLAP_ODDS * enough * cross / math.sqrt(energies[0] * energies[1])

    def _voice_evidence(self, chunk: Streams) -> NDArray[np.float64]:
        """(S, S) log odds of pairs of voices so far and voices of the chunk."""
        heard = self._meter.measure(chunk.mean(1))
        pool = Summary.empty()
        for summary in (*self._voices, *heard):
            pool.add(summary)
        odds = np.array(
            [[log_likelihood(new, voice, pool) for new in heard] for voice in self._voices]
        )
        odds -= odds.mean(0)
        largest = float(np.abs(odds).max(initial=0.0))
        limit = VOICE_ODDS / 2
        return odds if largest <= limit else odds * (limit / largest)


def best_order(odds: NDArray[np.float64]) -> tuple[tuple[int, ...], float]:
    """The order with the largest sum, and its lead over the best one that swaps two streams."""
    from espnet2_sepx.score.permute import best_permutation

    order = best_permutation(odds)
    return order, _odds_of(odds, order)


def _odds_of(odds: NDArray[np.float64], order: tuple[int, ...]) -> float:
    """Lead of an order over the nearest exchange of two streams; infinite for one stream."""
    rows = odds[:, list(order)]
    kept = np.diag(rows)[:, None] + np.diag(rows)[None]
    lead = kept - rows - rows.T
    np.fill_diagonal(lead, np.inf)
    return float(lead.min(initial=700.0))


def match_channels(streams: list[NDArray[np.float32]]) -> Streams:
    """Streams ``(S, n)`` of each channel, in the order of the first channel, ``(S, C, n)``.

    Spectra are compared, not waveforms: a voice reaches the channels at different times.
    """

    def spectra(x: NDArray[np.float32]) -> NDArray[np.float64]:
        size = min(512, x.shape[1])
        frames = np.lib.stride_tricks.sliding_window_view(x, size, axis=1)[:, :: max(size // 2, 1)]
        power = np.abs(np.fft.rfft(frames * np.hanning(size))).reshape(len(x), -1)
        return power - power.mean(0)

    first = spectra(streams[0])
    orders = [best_order(first @ spectra(channel).T)[0] for channel in streams]
    return np.stack([x[list(order)] for x, order in zip(streams, orders, strict=True)], 1)
