"""What a voice sounds like, in a few numbers: spectral shape, pitch and level.

Each stream of a recording keeps a running summary, against which the streams of a new chunk are
compared where the overlap says nothing. It is a single Gaussian per voice over cepstra and the
logarithm of the fundamental frequency, and knows voices apart after a second or two of speech.

Legend: S streams, N samples, T frames, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUM_BANDS, NUM_CEPSTRA = 20, 12
NUM_FEATURES = NUM_CEPSTRA + 1  # and pitch
_FRAME_S, _HOP_S = 0.04, 0.02
_LOWEST_HZ, _HIGHEST_HZ = 100.0, 3600.0
_PITCH_HZ = (70.0, 350.0)
_VOICED = 0.5  # height of the autocorrelation's peak
_RANGE_DB = 30.0  # frames this far below the loud ones of their stream are no speech
_DOMINANT_DB = 6.0  # frames must be so much louder than all other streams together
_QUIETEST_POWER = 1e-12  # -120 dB of full scale is silence in any recording

EFFECTIVE_PER_S = 3.0  # independent observations in a second of speech
_PRIOR_S = 2.0  # so much speech is assumed to have been heard of an average voice
_MEMORY_S = 60.0  # older speech than this fades


@dataclass
class Summary:
    """Weighted sums over frames, of the features D of one stream.

    Attributes:
        weight, total, square: each (D,); unvoiced frames have no weight in the pitch.
    """

    weight: Array
    total: Array
    square: Array

    @classmethod
    def empty(cls) -> Summary:
        return cls(*(np.zeros(NUM_FEATURES) for _ in range(3)))

    @property
    def seconds(self) -> float:
        return float(self.weight[0]) * _HOP_S

    def add(self, other: Summary, share: float = 1.0) -> None:
        """Take in another one, in part; what is old fades so that the sum stays bounded."""
        keep = min(1.0, _MEMORY_S / max(self.seconds + share * other.seconds, _MEMORY_S))
        for name in ("weight", "total", "square"):
            setattr(self, name, keep * (getattr(self, name) + share * getattr(other, name)))


class VoiceMeter:
    """Summaries of streams; knows filters for one sampling rate."""

    def __init__(self, fs: int) -> None:
        self._frame, self._hop = round(_FRAME_S * fs), max(round(_HOP_S * fs), 1)
        self._fft = 1 << (2 * self._frame - 1).bit_length()
        self._window = np.hanning(self._frame + 1)[:-1]
        self._bands = _mel_bands(self._fft, fs)
        self._lags = max(int(fs / _PITCH_HZ[1]), 1), min(int(fs / _PITCH_HZ[0]), self._frame - 1)
        self._fs = fs
        bands, orders = np.arange(NUM_BANDS) + 0.5, np.arange(1, NUM_CEPSTRA + 1)
        self._dct = np.cos(np.pi / NUM_BANDS * np.outer(bands, orders)) / np.sqrt(NUM_BANDS)
        window_acf = np.fft.irfft(np.abs(np.fft.rfft(self._window, self._fft)) ** 2)
        self._window_acf = window_acf / window_acf[0]

    def measure(self, streams: NDArray[np.float32]) -> list[Summary]:
        """``(S, N)`` -> a summary of each, of the frames in which it alone is heard."""
        count = (streams.shape[1] - self._frame) // self._hop + 1
        if count < 1:
            return [Summary.empty() for _ in streams]
        frames = np.lib.stride_tricks.sliding_window_view(streams, self._frame, axis=1)
        power_SXT = np.stack(
            [
                np.abs(np.fft.rfft(stream[:: self._hop] * self._window, self._fft)) ** 2
                for stream in frames
            ]
        )
        level = power_SXT.sum(2) / (self._fft * np.square(self._window).sum())
        loud = np.maximum(np.percentile(level, 95, axis=1, keepdims=True), _QUIETEST_POWER)
        others = level.sum(0) - level
        alone = (level > loud * 10 ** (-_RANGE_DB / 10)) & (
            level > others * 10 ** (_DOMINANT_DB / 10)
        )
        return [self._summary(power[use]) for power, use in zip(power_SXT, alone, strict=True)]

    def _summary(self, power_TF: Array) -> Summary:
        if not len(power_TF):
            return Summary.empty()
        bands = np.log(power_TF @ self._bands + 1e-5 * power_TF.mean(1, keepdims=True) + 1e-20)
        cepstra = bands @ self._dct
        acf = np.fft.irfft(power_TF)
        low, high = self._lags
        part = acf[:, low : high + 1] / (acf[:, :1] * self._window_acf[low : high + 1] + 1e-20)
        lag = low + part.argmax(1)
        voiced = (part.max(1) > _VOICED).astype(float)
        x = np.concatenate((cepstra, np.log(self._fs / lag)[:, None]), 1)
        weight = np.concatenate((np.ones_like(cepstra), voiced[:, None]), 1)
        return Summary(weight.sum(0), (weight * x).sum(0), (weight * x * x).sum(0))


def log_likelihood(heard: Summary, voice: Summary, pool: Summary) -> float:
    """How well what was heard fits to a voice, as the logarithm of a probability.

    Features count as independent and Gaussian. The voice is drawn towards the pool of all voices
    as long as little of it is known.
    """
    prior = _PRIOR_S / _HOP_S
    mean_pool, var_pool = _moments(pool, floor=1e-3)
    weight = voice.weight + prior
    mean = (voice.total + prior * mean_pool) / weight
    square = (voice.square + prior * (var_pool + mean_pool**2)) / weight
    variance = np.maximum(square - mean**2, 0.1 * var_pool)
    deviation = heard.square - 2 * mean * heard.total + mean**2 * heard.weight
    total = -0.5 * (heard.weight * np.log(variance) + deviation / variance)
    return float(total.sum()) * EFFECTIVE_PER_S * _HOP_S


def _moments(summary: Summary, floor: float) -> tuple[Array, Array]:
    weight = np.maximum(summary.weight, 1e-9)
    mean = summary.total / weight
    return mean, np.maximum(summary.square / weight - mean**2, floor)


def _mel_bands(n_fft: int, fs: int) -> Array:
    """Triangles, ``(n_fft / 2 + 1, NUM_BANDS)``."""

    def mel(hz: float) -> float:
        return 2595 * np.log10(1 + hz / 700)

    top = min(_HIGHEST_HZ, 0.45 * fs)
    mels = np.linspace(mel(min(_LOWEST_HZ, 0.1 * top)), mel(top), NUM_BANDS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    hz = np.arange(n_fft // 2 + 1)[:, None] * fs / n_fft
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0)
