"""Cuts a stream into overlapping chunks, with the joints where there is something to align by.

Two neighbouring chunks are joined by what they have in common. When the usual overlap falls into a
pause there is nothing in it, so the next chunk starts earlier, as far as needed to contain speech
from before the pause, and at most up to ``reach``. This costs computation only where pauses are.

Legend: N samples, C channels, n samples of a block, T blocks of 10 ms.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Block = NDArray[np.float32]

SOUND_S = 0.5  # speech that an overlap should contain
_MEMORY_S = 60.0  # over which loud and quiet are told apart
_QUIETEST_POWER = 1e-12  # -120 dB of full scale is silence in any recording
_RANGE_DB = 30.0  # speech lies within this of the loud parts ...
_ABOVE_FLOOR = 0.3  # ... and this part of the way up from the quiet parts


@dataclass(frozen=True)
class Chunk:
    """Samples ``(n, C)`` from ``start`` on."""

    start: int
    samples: Block

    @property
    def end(self) -> int:
        return self.start + len(self.samples)


class Chunker:
    """Blocks in, chunks out.

    Args:
        chunk: samples of a chunk; a stream that is not longer is one chunk.
        overlap: samples that neighbours share at least.
        reach: samples that they share at most (save the last two, whose lengths decide).
        fs: in Hz.
    """

    def __init__(self, chunk: int, overlap: int, reach: int, fs: int) -> None:
        if not 0 <= overlap <= reach < chunk:
            raise ValueError(
                f"expected 0 <= overlap <= reach < chunk, got {overlap}, {reach}, {chunk}"
            )
        self.chunk, self.overlap, self.reach = chunk, overlap, reach
        self._block = max(fs // 100, 1)
        self._history: deque[float] = deque(maxlen=round(_MEMORY_S * fs / self._block))
        self._held = np.zeros((0, 0), np.float32)  # from `_base`, the start of the last chunk, on
        self._base = 0
        self._next = 0  # start of the next chunk
        self._cut = 0  # end of the last chunk

    def push(self, block: Block) -> list[Chunk]:
        """Chunks that are certain: the stream goes on behind them."""
        self._held = np.concatenate((self._held, block)) if self._held.size else block
        chunks = []
        while self._base + len(self._held) > self._next + self.chunk:
            chunks.append(self._cut_off())
        return chunks

    def flush(self) -> list[Chunk]:
        """The last chunk, whole again: it ends where the stream ends, and overlaps more."""
        end = self._base + len(self._held)
        if end == self._cut:
            return []
        start = max(end - self.chunk, 0)
        return [Chunk(start, self._held[start - self._base :])]

    def _cut_off(self) -> Chunk:
        self._held = self._held[self._next - self._base :].copy()
        self._base = self._next
        chunk = Chunk(self._base, self._held[: self.chunk])
        power = _block_power(chunk.samples[self._cut - self._base :], self._block)
        self._history.extend(power.tolist())
        self._cut = chunk.end
        self._next = chunk.end - self._shared(chunk.samples)
        return chunk

    def _shared(self, samples: Block) -> int:
        """How many samples the next chunk should have in common with this one."""
        power_T = _block_power(samples[::-1], self._block)  # backwards from the end
        sound_T = np.cumsum(power_T > self._threshold())
        wanted = np.ceil(SOUND_S * 100)
        blocks = int(np.searchsorted(sound_T, wanted)) + 1
        if blocks * self._block > self.reach:  # not enough within reach: what there is
            within = max(self.reach // self._block, 0)
            most = sound_T[within - 1] if within else 0
            blocks = int(np.searchsorted(sound_T, most)) + 1 if most else 0
        return int(np.clip(blocks * self._block, self.overlap, self.reach))

    def _threshold(self) -> float:
        quiet, loud = 10 * np.log10(
            np.maximum(np.percentile(np.asarray(self._history), (10, 95)), _QUIETEST_POWER)
        )
        return float(10 ** (max(loud - _RANGE_DB, quiet + _ABOVE_FLOOR * (loud - quiet)) / 10))


def _block_power(samples: Block, block: int) -> NDArray[np.float64]:
    """Power of whole blocks, the mean over channels, ``(n, C) -> (T,)``."""
    count = len(samples) // block
    squares = np.square(samples[: count * block], dtype=np.float64).mean(1)
    return squares.reshape(count, block).mean(1)
