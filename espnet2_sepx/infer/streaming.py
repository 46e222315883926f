"""Separation of a live stream: push samples as they come, get separated ones back.

    stream = StreamingSeparator(model)          # of a causal separator
    for block in microphone:                    # (1, n), n as it comes
        voices = stream.push(block)             # [(1, m)] * speakers, m maybe 0
    voices = stream.flush()                     # the rest

All that comes out is as long as what went in, and equal to separating the whole recording.

Legend: B batch, n samples pushed, m samples returned, F channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EnhModel = Any  # an ESPnetEnhancementModel, which cannot be imported cheaply


class StreamingSeparator:
    """Encoder, causal separator and decoder with what they remember.

    Args:
        model: an ESPnet enhancement model in eval mode with a ``conv`` (or ``conv_chunk``) encoder
            and decoder and a separator with ``forward_streaming`` for any number of frames.

    Raises:
        ValueError: the model cannot stream.
    """

    def __init__(self, model: EnhModel) -> None:
        self.model = model
        if not hasattr(model.encoder, "conv1d") or not hasattr(model.decoder, "convtrans1d"):
            raise ValueError("the encoder and decoder must be conv or conv_chunk to stream")
        if getattr(model.separator, "lookahead_frames", None) is None:
            raise ValueError(
                "the separator must be causal to stream (re_sepformer: causal chunk or strict)"
            )
        if getattr(model, "normalize_variance", False):
            raise ValueError("normalize_variance must be false: a stream's variance is not known")
        self.kernel, self.stride = model.encoder.kernel_size, model.encoder.stride
        self.reset()

    @property
    def latency(self) -> int:
        """Algorithmic latency in samples: a sample comes out when that many, itself included, have
        gone in; the first of a chunk has to wait longest."""
        return self.model.separator.lookahead_frames * self.stride + self.kernel

    def reset(self) -> None:
        """Forget the stream."""
        self.states: Any = None
        self._input: Tensor | None = None  # (B, < kernel): samples of frames to come
        self._tails: list[Tensor] = []  # per speaker (B, kernel - stride): frames that overlap
        self._pushed, self._returned = 0, 0

    @property
    def nbytes(self) -> int:
        """Memory that the stream holds, in bytes."""
        tensors = [*self._tails, *([] if self._input is None else [self._input])]
        states = 0 if self.states is None else self.states.nbytes
        return states + sum(tensor.nbytes for tensor in tensors)

    @torch.no_grad()
    def push(self, samples: Tensor) -> list[Tensor]:
        """``(B, n)`` in, (B, m) per speaker out: what is final by now."""
        self._pushed += samples.shape[1]
        waiting = samples if self._input is None else torch.cat((self._input, samples), 1)
        frames = (waiting.shape[1] - self.kernel) // self.stride + 1
        if frames < 1:
            self._input = waiting
            return [samples[:, :0] for _ in range(self.model.num_spk)]
        self._input = waiting[:, frames * self.stride :].clone()
        used = waiting[:, : (frames - 1) * self.stride + self.kernel]
        features, _ = self.model.encoder(used, torch.tensor([used.shape[1]]))
        outputs, self.states, _ = self.model.separator.forward_streaming(features, self.states)
        return self._overlap_add(outputs)

    @torch.no_grad()
    def flush(self) -> list[Tensor]:
        """The rest of a stream that ends here; afterwards a new one may begin."""
        waves = []
        if self.states is not None:
            outputs, self.states, _ = self.model.separator.flush_streaming(self.states)
            waves = self._overlap_add(outputs)
        elif self._input is not None:  # too short for a frame: silence, as in whole recordings
            waves = [self._input[:, :0]] * self.model.num_spk
        missing = self._pushed - self._returned
        tails = self._tails or waves
        ends = [torch.nn.functional.pad(tail, (0, self.kernel))[:, :missing] for tail in tails]
        self.reset()
        return [torch.cat(pair, 1) for pair in zip(waves, ends, strict=True)]

    def _overlap_add(self, outputs: list[Tensor]) -> list[Tensor]:
        """Decode frames ``(B, m', F)`` per speaker; keep the samples that the next one changes."""
        frames = outputs[0].shape[1]
        final = frames * self.stride
        self._returned += final
        if not frames:
            return [output.new_zeros(output.shape[0], 0) for output in outputs]
        samples = torch.tensor([final - self.stride + self.kernel])
        waves = [self.model.decoder(output, samples)[0] for output in outputs]
        for wave, tail in zip(waves, self._tails, strict=bool(self._tails)):
            wave[:, : tail.shape[1]] += tail
        self._tails = [wave[:, final:].clone() for wave in waves]
        return [wave[:, :final] for wave in waves]
