"""Band-limited resampling of a stream by soxr, which ESPnet's librosa brings along.

A block filter such as ``scipy.signal.resample_poly`` would have to see the whole recording, or be
taught to keep its state.

Legend: n samples of a block, C channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

QUALITY = "VHQ"  # aliases and images below -140 dB, flat up to 91 % of the lower Nyquist frequency

Block = NDArray[np.float32]


class Resampler:
    """Resamples blocks ``(n, C)``; equal rates pass through untouched.

    Args:
        old, new: rates in Hz.
        channels: C.
    """

    def __init__(self, old: int, new: int, channels: int) -> None:
        self._stream = None
        if old != new:
            import soxr

            self._stream = soxr.ResampleStream(old, new, channels, "float32", QUALITY)
        self._channels = channels

    def push(self, block: Block) -> Block:
        """What has become ready, any number of samples."""
        if self._stream is None or not len(block):
            return block
        return self._stream.resample_chunk(np.ascontiguousarray(block, np.float32))

    def flush(self) -> Block:
        """The rest; ends the stream."""
        nothing = np.zeros((0, self._channels), np.float32)
        return nothing if self._stream is None else self._stream.resample_chunk(nothing, last=True)
