"""Who speaks when, from the levels of separated streams, as an RTTM file.

A level gate, like that of ``data/overlap.py``, which knows only clean signals; here a stream must
also not be far below the loudest one, because separators leak.

Legend: S speakers, C channels, n samples, T blocks of 10 ms.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espnet2_sepx.files import atomic_write

_RANGE_DB = 25.0  # below the loud parts of the stream
_LEAK_DB = 15.0  # below the loudest stream at the time
_LONGEST_PAUSE = 20  # blocks, bridged
_SHORTEST_TURN = 6  # blocks, left out
_QUIETEST_POWER = 1e-12  # -120 dB of full scale is silence in any recording


class ActivityTrack:
    """Collects the levels of streams as they come; an hour of two voices takes 3 MB."""

    def __init__(self, fs: int) -> None:
        self._block = max(fs // 100, 1)
        self._block_s = self._block / fs
        self._rest: NDArray[np.float32] | None = None
        self._power: list[NDArray[np.float32]] = []

    def push(self, streams: NDArray[np.float32]) -> None:
        """Take note of ``(S, C, n)``."""
        if self._rest is not None:
            streams = np.concatenate((self._rest, streams), 2)
        count = streams.shape[2] // self._block
        used, self._rest = np.split(streams, [count * self._block], 2)
        blocks = used.reshape(*used.shape[:2], count, self._block)
        self._power.append(np.square(blocks).mean((1, 3)))

    def turns(self) -> list[list[tuple[float, float]]]:
        """Per speaker, start and end of each turn in seconds."""
        power_ST = np.concatenate(self._power, 1) if self._power else np.zeros((0, 0))
        if not power_ST.size:
            return [[] for _ in power_ST]
        loud = np.maximum(np.percentile(power_ST, 95, axis=1, keepdims=True), _QUIETEST_POWER)
        active = power_ST > loud * 10 ** (-_RANGE_DB / 10)
        active &= power_ST > power_ST.max(0) * 10 ** (-_LEAK_DB / 10)
        return [
            [(first * self._block_s, last * self._block_s) for first, last in _runs(speaker)]
            for speaker in active
        ]

    def write(self, path: Path, name: str) -> None:
        """Write ``SPEAKER`` lines of the RTTM format, sorted by time."""
        lines = sorted(
            (start, speaker, end)
            for speaker, turns in enumerate(self.turns(), start=1)
            for start, end in turns
        )
        with atomic_write(path) as stream:
            for start, speaker, end in lines:
                stream.write(
                    f"SPEAKER {name} 1 {start:.2f} {end - start:.2f} <NA> <NA> spk{speaker} "
                    "<NA> <NA>\n"
                )


def _runs(active_T: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and one-past-last block of each run, short pauses bridged, short runs left out."""
    edges = np.flatnonzero(np.diff(np.pad(active_T.astype(np.int8), 1)))
    runs: list[tuple[int, int]] = []
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if runs and first - runs[-1][1] <= _LONGEST_PAUSE:
            runs[-1] = (runs[-1][0], last)
        else:
            runs.append((first, last))
    return [(first, last) for first, last in runs if last - first >= _SHORTEST_TURN]
