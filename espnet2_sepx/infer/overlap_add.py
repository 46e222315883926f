"""Weighted overlap-add: pieces of a signal, at any places, become one signal.

Weights are summed up beside the samples and divided out, so that pieces which agree give exactly
what they agree on, whatever their overlap.

Legend: S streams, C channels, n samples of a piece.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Streams = NDArray[np.float32]


class OverlapAdd:
    """Adds pieces in the order of their starts and hands out what is finished.

    Attributes:
        start, end: the samples held; ``start`` is where the next ``pop`` begins.
    """

    def __init__(self, streams: int, channels: int = 1) -> None:
        self.start = 0
        self._sum = np.zeros((streams, channels, 0), np.float32)
        self._weight = np.zeros(0, np.float32)

    @property
    def end(self) -> int:
        return self.start + len(self._weight)

    def add(self, start: int, piece: Streams, weight: NDArray[np.float32]) -> None:
        """Add a piece ``(S, C, n)`` with weights ``(n,)`` above 0; it must not leave a gap."""
        if not self.start <= start <= self.end:
            raise ValueError(f"start must lie in {self.start}..{self.end}, got {start}")
        first, last = start - self.start, start - self.start + piece.shape[2]
        if (missing := last - len(self._weight)) > 0:
            self._sum = np.pad(self._sum, ((0, 0), (0, 0), (0, missing)))
            self._weight = np.pad(self._weight, (0, missing))
        self._sum[:, :, first:last] += piece * weight
        self._weight[first:last] += weight

    def peek(self, start: int, end: int) -> Streams:
        """The signal as it stands, ``(S, C, end - start)``."""
        part = slice(start - self.start, end - self.start)
        return self._sum[:, :, part] / self._weight[part]

    def pop(self, end: int) -> Streams:
        """Take out everything before ``end``, which no later piece may reach."""
        end = min(max(end, self.start), self.end)
        finished = self.peek(self.start, end)
        self._sum = self._sum[:, :, end - self.start :].copy()
        self._weight = self._weight[end - self.start :].copy()
        self.start = end
        return finished


def fade(samples: int, edge: int) -> NDArray[np.float32]:
    """Weights ``(samples,)``, 1 but for raised-cosine edges, which are the least reliable part."""
    edge = min(edge, samples // 2)
    weight = np.ones(samples, np.float32)
    ramp = np.sin(0.5 * np.pi * (np.arange(edge) + 0.5) / max(edge, 1)) ** 2
    weight[:edge] = ramp
    weight[samples - edge :] = ramp[::-1]
    return np.maximum(weight, 1e-4)
