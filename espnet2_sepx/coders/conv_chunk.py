"""ESPnet's ``conv`` encoder and decoder, streaming many frames per step.

Parameters and whole-recording results are those of ``conv``. ESPnet's streaming driver asks the
encoder to cut a recording into pieces and gives the separator one piece at a time; ``conv`` cuts
single frames. A separator that waits for chunks needs whole chunks, and any other is faster with
more frames per step.

Legend: B batch, L samples, F channels, n frames of a piece.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from espnet2.enh.decoder.conv_decoder import ConvDecoder
from espnet2.enh.encoder.conv_encoder import ConvEncoder
from torch import Tensor
from torch.nn.functional import pad


def _check(chunk_size: int) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")


class ChunkConvEncoder(ConvEncoder):
    """Convolution and ReLU.

    Args:
        channel: F.
        kernel_size, stride: in samples.
        chunk_size: frames per piece of a stream, those of the separator's chunks or fewer.
    """

    def __init__(self, channel: int, kernel_size: int, stride: int, chunk_size: int = 1) -> None:
        super().__init__(channel, kernel_size, stride)
        _check(chunk_size)
        self.chunk_size = chunk_size

    def streaming_frame(self, audio: Tensor) -> list[Tensor]:
        """Cut ``(B, L)`` into pieces of ``chunk_size`` frames; the last one may have fewer."""
        samples = audio.shape[1]
        if samples < self.kernel_size:
            raise ValueError(
                f"audio must have at least the {self.kernel_size} samples of one frame, "
                f"got {samples}"
            )
        frames = (samples - self.kernel_size) // self.stride + 1
        overlap = self.kernel_size - self.stride
        return [
            audio[:, start * self.stride : stop * self.stride + overlap]
            for start in range(0, frames, self.chunk_size)
            for stop in [min(start + self.chunk_size, frames)]
        ]

    def forward_streaming(self, input: Tensor) -> Tensor:
        """Features ``(B, chunk_size, F)`` of one piece; a last one of fewer frames ends in zero
        features, like the last chunk of a whole recording, so that separators see it complete."""
        samples = torch.tensor([input.shape[1]])
        features, _ = self.forward(input, samples)
        return pad(features, (0, 0, 0, self.chunk_size - features.shape[1]))


class ChunkConvDecoder(ConvDecoder):
    """Transposed convolution. Arguments as of the encoder, and the same values."""

    def __init__(self, channel: int, kernel_size: int, stride: int, chunk_size: int = 1) -> None:
        super().__init__(channel, kernel_size, stride)
        _check(chunk_size)
        self.chunk_size = chunk_size

    def forward_streaming(self, input_frame: Tensor) -> Tensor:
        """Samples of the frames ``(B, n, F)`` of one piece."""
        samples = (input_frame.shape[1] - 1) * self.stride + self.kernel_size
        return self.forward(input_frame, torch.tensor([samples]))[0]

    def streaming_merge(self, chunks: Sequence[Tensor], ilens: Tensor | None = None) -> Tensor:
        """Add up pieces ``(B, samples)``; ``(B, L)`` with L the longest of ``ilens``, or all."""
        hop = self.chunk_size * self.stride
        whole = (len(chunks) - 1) * hop + chunks[-1].shape[1]
        samples = whole if ilens is None else int(ilens.max())
        output = chunks[0].new_zeros(chunks[0].shape[0], max(whole, samples))
        for index, chunk in enumerate(chunks):
            output[:, index * hop : index * hop + chunk.shape[1]] += chunk
        return output[:, :samples]
