"""Causal models as true streams: samples in, samples out, at the model's algorithmic latency.

Encoder frames go through the separator's ``forward_streaming`` and come back by overlap-add. Our
separators take any number of frames at once, may hold some back, and say how many
(``lookahead_frames``, ``flush_streaming``); ESPnet's take one frame at a time.

Legend: N samples, C channels (always 1 here), S speakers, F features, n frames of a call,
L samples of a frame, H hop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espnet2_sepx.infer.forward import EnhModel, frame_samples, separate

Block = NDArray[np.float32]
Streams = NDArray[np.float32]

_PROBE_FRAMES = 300
_PROBE_TOLERANCE = 1e-4  # of the peak


class Framing:
    """How encoder and decoder cut and join frames; the decoder's window is divided out.

    Attributes:
        frame, hop: L, H in samples.
        pad: samples by which the first frame begins before the signal (mirrored there).
    """

    def __init__(self, model: EnhModel) -> None:
        encoder, decoder = model.encoder, model.decoder
        self._encoder = encoder
        if hasattr(encoder, "stft"):
            self.frame, self.hop = int(encoder.win_length), int(encoder.hop_length)
            self.pad = self.frame // 2 if encoder.center else 0
            self.envelope = decoder._get_window_func().square().numpy()
        else:
            self.frame, self.hop, self.pad = int(encoder.kernel_size), int(encoder.stride), 0
            self.envelope = None

    def encode(self, frames: Tensor) -> Tensor:
        """Features ``(n, 1, F)`` of frames ``(n, L)``."""
        if hasattr(self._encoder, "stft"):
            return self._encoder.forward_streaming(frames)
        return self._encoder(frames, torch.full((len(frames),), self.frame))[0]


def why_not_streaming(model: EnhModel) -> str | None:
    """Why a model cannot stream; None if it can.

    ESPnet's separators do not say, so they are tried: streamed and whole output must agree.
    """
    from espnet2.enh.separator.abs_separator import AbsSeparator

    separator = getattr(model, "separator", None)
    no_method = AbsSeparator.forward_streaming
    if separator is None or type(separator).forward_streaming is no_method:
        return "its separator sees the whole recording"
    if not (hasattr(model.encoder, "stft") or hasattr(model.encoder, "kernel_size")):
        return "its encoder has no frames"
    if model.normalize_variance or model.normalize_variance_per_ch or model.always_forward_in_48k:
        return "it needs the level of the whole recording, or another rate"
    if hasattr(separator, "lookahead_frames"):
        future = separator.lookahead_frames
        return None if future is not None else "this configuration of it is not causal"
    framing = Framing(model)
    noise = np.random.default_rng(0).standard_normal(framing.frame + _PROBE_FRAMES * framing.hop)
    mixture = 0.1 * noise.astype(np.float32)
    try:
        stream = CausalEngine(model)
        parts = [stream.push(mixture[:, None]), stream.flush()]
    except Exception as error:  # the separator's own, for want of a promise to rely on
        return f"streaming fails: {' '.join(str(error).split()) or type(error).__name__}"
    whole = torch.stack(separate(model, torch.from_numpy(mixture)[None], 0)).numpy()
    difference = np.abs(np.concatenate(parts, 2) - whole).max()
    if not difference <= _PROBE_TOLERANCE * np.abs(whole).max():
        return "its output changes with what comes later"
    return None


class CausalEngine:
    """One stream. ``push`` and ``flush`` give ``(S, 1, samples)``.

    Args:
        model: one for which ``why_not_streaming`` is None.
        device: where the separator computes; encoder and decoder, which are small, stay on the CPU.

    Attributes:
        latency: an output sample is there when this many samples, its own included, have come
            in from its place on.
    """

    joints: tuple[()] = ()

    def __init__(self, model: EnhModel, device: str = "cpu") -> None:
        self._model, self._device = model, device
        self._framing = Framing(model)
        self._many = hasattr(model.separator, "lookahead_frames")
        future = model.separator.lookahead_frames if self._many else 0
        self.latency = self._framing.frame + future * self._framing.hop
        self._state: Any = None
        self._came = self._left = 0  # samples in and out
        self._input = np.zeros(0, np.float32)  # from the next frame's start on
        self._recent = np.zeros(0, np.float32)  # the last ones, to be mirrored at the end
        self._sum = np.zeros(
            (model.separator.num_spk, 0), np.float32
        )  # of frames still overlapping
        self._weight = np.zeros(0, np.float32)
        self._skip = self._framing.pad  # samples before the signal, still to be left out
        self._started = self._framing.pad == 0

    def push(self, block: Block) -> Streams:
        """Samples ``(N, 1)``; returns what is ready."""
        self._came += len(block)
        self._input = np.concatenate((self._input, block[:, 0]))
        if self._framing.pad:
            self._recent = np.concatenate((self._recent, block[:, 0]))[-1 - self._framing.pad :]
        if not self._started:
            pad = self._framing.pad
            if len(self._input) <= pad:
                return self._out(self._sum)
            self._input = np.concatenate((self._input[pad:0:-1], self._input))
            self._started = True
        return self._out(self._advance())

    def flush(self) -> Streams:
        """The rest; ends the stream."""
        total, pad = self._came, self._framing.pad
        parts = []
        if total < (least := frame_samples(self._model, 0)):
            parts.append(self.push(np.zeros((least - total, 1), np.float32)))
        if pad:
            self._input = np.concatenate((self._input, self._recent[-2 : -2 - pad : -1]))
            parts.append(self._out(self._advance()))
        if hasattr(self._model.separator, "flush_streaming") and self._state is not None:
            with torch.no_grad():
                outputs, self._state, _ = self._model.separator.flush_streaming(self._state)
            parts.append(self._out(self._decode(outputs)))
        parts.append(self._out(self._finished(self._sum.shape[1])))
        before = self._left - sum(part.shape[2] for part in parts)
        rest = np.concatenate(parts, 2)[:, :, : total - before]
        return np.pad(rest, ((0, 0), (0, 0), (0, total - before - rest.shape[2])))

    def _out(self, ready: NDArray[np.float32]) -> Streams:
        """``(S, N)`` without what lies before the signal, as ``(S, 1, N)``."""
        skipped = min(self._skip, ready.shape[1])
        self._skip -= skipped
        self._left += ready.shape[1] - skipped
        return ready[:, None, skipped:]

    @torch.no_grad()
    def _advance(self) -> NDArray[np.float32]:
        """Send the frames that are complete through the model."""
        frame, hop = self._framing.frame, self._framing.hop
        count = max((len(self._input) - frame) // hop + 1, 0)
        if not count:
            return self._sum[:, :0]
        frames = np.lib.stride_tricks.sliding_window_view(self._input, frame)[::hop][:count]
        features = self._framing.encode(torch.from_numpy(frames.copy()))
        self._input = self._input[count * hop :].copy()
        features = features.transpose(0, 1).to(self._device)  # (1, n, F)
        ready = []
        for part in (features,) if self._many else features.split(1, 1):
            outputs, self._state, _ = self._model.separator.forward_streaming(part, self._state)
            ready.append(outputs)
        return self._decode([torch.cat(parts, 1) for parts in zip(*ready, strict=True)])

    @torch.no_grad()
    def _decode(self, outputs: list[Tensor]) -> NDArray[np.float32]:
        """Frames ``(1, n, F)`` of each speaker to the samples ``(S, N)`` that they finish."""
        count = outputs[0].shape[1]
        if not count:
            return self._sum[:, :0]
        frame, hop = self._framing.frame, self._framing.hop
        waves = torch.stack(
            [self._model.decoder.forward_streaming(x.cpu().transpose(0, 1)) for x in outputs]
        ).numpy()  # (S, n, L)
        length = (count - 1) * hop + frame
        longer = length - self._sum.shape[1]
        self._sum = np.pad(self._sum, ((0, 0), (0, longer)))
        self._weight = np.pad(self._weight, (0, longer))
        envelope = self._framing.envelope
        for first in range(
            0, frame, hop
        ):  # samples that lie so deep in their frames do not overlap
            size = min(hop, frame - first)
            places = (first + hop * np.arange(count))[:, None] + np.arange(size)
            self._sum[:, places] += waves[:, :, first : first + size]
            if envelope is not None:
                self._weight[places] += envelope[first : first + size]
        return self._finished(count * hop)

    def _finished(self, samples: int) -> NDArray[np.float32]:
        """Take so many samples out, which no later frame reaches."""
        ready, self._sum = self._sum[:, :samples], self._sum[:, samples:].copy()
        weight, self._weight = self._weight[:samples], self._weight[samples:].copy()
        if self._framing.envelope is None:
            return ready
        return ready / np.maximum(weight, np.finfo(np.float32).tiny)
