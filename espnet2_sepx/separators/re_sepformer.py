"""RE-SepFormer: resource-efficient separation Transformer (Della Libera et al., 2024).

Chunks without overlap; a Transformer within each chunk, one over the chunks' means, the sum of both
into a second Transformer within each chunk. Numerically the network of SpeechBrain (which adds
positions, norms and skips that the paper does not mention), so its weights can be imported; but
every utterance of a batch has a memory of its own.

A causal model comes in two kinds. "chunk" is the paper's: attention looks back only, but the mean
of a chunk reaches its first frame, so it waits for whole chunks. "strict" (not in the paper) hands
each chunk the memory of the one before and waits for nothing.

Legend: B batch, T frames, F channels, K chunk size, S chunks, J outputs, n frames of a call.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from espnet2.enh.separator.abs_separator import AbsSeparator
from torch import Tensor, nn

from espnet2_sepx.layers.dual_path import Segmentation
from espnet2_sepx.layers.kernels import linear
from espnet2_sepx.layers.resepformer import NORMS, BlockState, TransformerBlock, apply_rows
from espnet2_sepx.layers.transformer import Span
from espnet2_sepx.separators.masking import (
    NONLINEAR,
    apply_masks,
    check_at_least_one,
    check_one_of,
    features,
    level_of,
    magnitude,
)

CAUSAL = (False, "chunk", "strict")


def _blocks(modules: nn.ModuleList) -> list[TransformerBlock]:
    return [module for module in modules if isinstance(module, TransformerBlock)]


@dataclass
class StreamingState:
    """What ``RESepFormerSeparator.forward_streaming`` hands from call to call.

    Attributes:
        frames: frames of the current chunk that wait for the rest of it, (B, <K, F); none in
            "strict" models.
        position: frames of the current chunk done already; "strict" only.
        memory: per memory block.
        intra: per intra block, of the current chunk; "strict" only.
        total: per memory block, sum over the current chunk (B, 1, F); "strict" only.
        context: per memory block, what it gives to the current chunk (B, 1, F); "strict" only.
    """

    frames: Tensor
    memory: list[BlockState]
    position: int = 0
    intra: list[BlockState] = field(default_factory=list)
    total: list[Tensor] = field(default_factory=list)
    context: list[Tensor] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        tensors = (self.frames, *self.total, *self.context)
        blocks = sum(block.nbytes for block in (*self.memory, *self.intra))
        return blocks + sum(tensor.nbytes for tensor in tensors)


class RESepFormerSeparator(AbsSeparator):
    """Separator over ESPnet's ``conv`` encoder and decoder (or ``conv_chunk``, to stream).

    Args:
        input_dim: F.
        num_spk: number of speakers.
        num_blocks: intra blocks; there is one memory block between two of them.
        chunk_size: K, frames.
        intra_layers, intra_ffn_dim: Transformer layers of an intra block, width of their
            feed-forwards.
        memory_layers, memory_ffn_dim: the same of a memory block.
        num_heads: of attention.
        causal: false, "chunk" or "strict" (see above); true is "chunk".
        memory_context: chunks that memory looks back to, the current one included; none: all.
            Only for causal models. It bounds the state of a stream.
        intra_norm, memory_norm: "gln" or "cln" behind the block; by default "cln" in causal models
            and "gln" in others. Memory with "gln" spoils causality (statistics over all chunks), so
            such a model (SpeechBrain's ``causal: True`` without ``norm_type: cln``) cannot stream.
        pad_mode: "always" (SpeechBrain: at least one zero frame behind) or "minimal".
        nonlinear: of the masks, "relu", "sigmoid" or "tanh".
        predict_noise: one more mask, for ``others["noise1"]``.
        dropout: in the Transformers.
        level_norm: scale what the masks are computed from to unit level, which makes the separator
            equivariant to gain. Off by default, as in the paper: published weights expect the
            level they were trained at. A causal model cannot know the level.

    Attributes:
        lookahead_frames: frames behind an output frame that it depends on; none if all.
    """

    def __init__(
        self,
        input_dim: int,
        num_spk: int = 2,
        num_blocks: int = 2,
        chunk_size: int = 150,
        intra_layers: int = 8,
        intra_ffn_dim: int = 1024,
        memory_layers: int = 8,
        memory_ffn_dim: int = 1024,
        num_heads: int = 8,
        causal: bool | str = False,
        memory_context: int | None = None,
        intra_norm: str | None = None,
        memory_norm: str | None = None,
        pad_mode: str = "always",
        nonlinear: str = "relu",
        predict_noise: bool = False,
        dropout: float = 0.0,
        level_norm: bool = False,
    ) -> None:
        super().__init__()
        check_at_least_one(
            input_dim=input_dim,
            num_spk=num_spk,
            num_blocks=num_blocks,
            intra_layers=intra_layers,
            intra_ffn_dim=intra_ffn_dim,
            memory_layers=memory_layers,
            memory_ffn_dim=memory_ffn_dim,
        )
        self.causal = "chunk" if causal is True else causal
        default = "cln" if self.causal else "gln"
        intra_norm, memory_norm = intra_norm or default, memory_norm or default
        check_one_of(CAUSAL, causal=self.causal)
        check_one_of(NORMS, intra_norm=intra_norm, memory_norm=memory_norm)
        check_one_of(tuple(NONLINEAR), nonlinear=nonlinear)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        if memory_context is not None:
            check_at_least_one(memory_context=memory_context)
            if not self.causal:
                raise ValueError("memory_context needs a causal model, got causal=False")
        if self.causal == "strict" and "gln" in (intra_norm, memory_norm):
            raise ValueError(
                "causal='strict' needs intra_norm and memory_norm to be 'cln', got gln"
            )
        if level_norm and self.causal:
            raise ValueError("level_norm must be false in a causal model, which cannot know it")
        self._num_spk = num_spk
        self.num_outputs = num_spk + predict_noise
        self.level_norm = level_norm
        self.nonlinear = NONLINEAR[nonlinear]
        self.segmentation = Segmentation(chunk_size, 0, pad_mode)
        self.intra_span = Span(causal=bool(self.causal))
        self.memory_context = memory_context
        self.streams = bool(self.causal) and memory_norm == "cln"

        def block(layers: int, ffn_dim: int, norm: str) -> TransformerBlock:
            return TransformerBlock(layers, input_dim, num_heads, ffn_dim, norm, dropout)

        self.intra = nn.ModuleList(
            block(intra_layers, intra_ffn_dim, intra_norm) for _ in range(num_blocks)
        )
        self.memory = nn.ModuleList(
            block(memory_layers, memory_ffn_dim, memory_norm) for _ in range(num_blocks - 1)
        )
        self.prelu = nn.PReLU()
        self.output = nn.Linear(input_dim, input_dim * self.num_outputs)  # row f J + j: f, output j

    @property
    def num_spk(self) -> int:
        return self._num_spk

    @property
    def lookahead_frames(self) -> int | None:
        if not self.streams:
            return None
        return self.segmentation.chunk_size - 1 if self.causal == "chunk" else 0

    def forward(
        self, input: Tensor, ilens: Tensor, additional: dict | None = None
    ) -> tuple[list[Tensor], Tensor, OrderedDict]:
        """Separate a batch of features.

        Args:
            input: (B, T, F), real; or complex, then masks are computed from magnitudes.
            ilens: valid frames (B,).
            additional: unused.

        Returns:
            masked features of the speakers, (B, T, F) each, zero behind ``ilens``; ``ilens``;
            others: ``mask_spk{n}`` (B, T, F), detached, and ``noise1`` (B, T, F) if asked for.
        """
        input, x, padding = features(input, ilens)
        frames = x.shape[1]
        lengths = (frames,) * x.shape[0] if padding is None else padding.lengths
        counts = tuple(self.segmentation.num_chunks(n) for n in lengths)
        if self.level_norm:
            x = x / level_of(x, padding)
        x = self.segmentation.split(x)  # (B, S, K, F)
        span = Span(bool(self.causal), self.memory_context, counts)
        for index, intra in enumerate(_blocks(self.intra)):
            x = apply_rows(intra, x.flatten(0, 1), self.intra_span).view(x.shape)
            if index < len(self.memory):
                context = self.memory[index](x.mean(2), span)  # (B, S, F)
                if self.causal == "strict":
                    context = torch.cat((torch.zeros_like(context[:, :1]), context[:, :-1]), 1)
                x += context[:, :, None]
        masks = self._masks(self.segmentation.merge(x, frames))
        outputs, others = apply_masks(input, masks, self.num_spk)
        return outputs, ilens, others

    def _masks(self, x: Tensor) -> list[Tensor]:
        """``(B, n, F)`` to one mask of that shape per output."""
        weight, bias = (
            p.unflatten(0, (-1, self.num_outputs)).transpose(0, 1).flatten(0, 1)
            for p in (self.output.weight, self.output.bias)
        )  # rows output by output, so that each mask is contiguous
        y = self.nonlinear(linear(self.prelu(x), weight, bias))
        return list(y.unflatten(-1, (self.num_outputs, -1)).unbind(2))

    @torch.no_grad()
    def forward_streaming(
        self, input_frame: Tensor, states: StreamingState | None = None
    ) -> tuple[list[Tensor], StreamingState, OrderedDict]:
        """Continue a stream by any number of frames.

        Args:
            input_frame: (B, n, F).
            states: of the call before (it is changed); none: a stream begins.

        Returns:
            masked features, state and others as of ``forward``, for the frames that are ready: all
            n in "strict" models; in "chunk" models those of every chunk that became complete,
            possibly none. ``flush_streaming`` gives the rest.

        Raises:
            ValueError: the model cannot stream.
        """
        if not self.streams:
            raise ValueError(
                "streaming needs causal 'chunk' or 'strict', and memory_norm 'cln'; this model "
                "sees the whole recording"
            )
        if states is None:
            memory = [block.start(self.memory_context) for block in _blocks(self.memory)]
            states = StreamingState(input_frame[:, :0], memory)
        if self.causal == "strict":
            return self._emit(
                input_frame, self._strict_step(magnitude(input_frame), states), states
            )
        size = self.segmentation.chunk_size
        waiting = torch.cat((states.frames, input_frame), 1)
        ready = waiting.shape[1] // size * size
        states.frames = waiting[:, ready:].clone()
        done = [self._chunk_step(magnitude(c), states) for c in waiting[:, :ready].split(size, 1)]
        return self._emit(waiting[:, :ready], torch.cat(done, 1), states)

    @torch.no_grad()
    def flush_streaming(
        self, states: StreamingState
    ) -> tuple[list[Tensor], StreamingState, OrderedDict]:
        """End of a stream: the frames that waited for the rest of their chunk, maybe none."""
        rest = states.frames
        states.frames = rest[:, :0]
        x = magnitude(rest)
        if x.shape[1]:
            missing = self.segmentation.chunk_size - x.shape[1]
            x = self._chunk_step(nn.functional.pad(x, (0, 0, 0, missing)), states)
        return self._emit(rest, x[:, : rest.shape[1]], states)

    def _emit(
        self, input: Tensor, x: Tensor, states: StreamingState
    ) -> tuple[list[Tensor], StreamingState, OrderedDict]:
        masks = self._masks(x) if x.shape[1] else [x] * self.num_outputs
        outputs, others = apply_masks(input, masks, self.num_spk)
        return outputs, states, others

    def _chunk_step(self, x: Tensor, states: StreamingState) -> Tensor:
        """One whole chunk ``(B, K, F)`` up to the masks; or none of no frames."""
        if not x.shape[1]:
            return x
        for index, intra in enumerate(self.intra):
            x = intra(x, self.intra_span)
            if index < len(self.memory):
                x = x + _blocks(self.memory)[index].step(
                    x.mean(1, keepdim=True), states.memory[index]
                )
        return x

    def _strict_step(self, x: Tensor, states: StreamingState) -> Tensor:
        """Any number of frames ``(B, n, F)`` up to the masks."""
        size, done = self.segmentation.chunk_size, []
        if not states.context:
            states.context = [torch.zeros_like(x[:, :1]) for _ in self.memory]
        while x.shape[1]:
            if states.position == 0:
                states.intra = [block.start() for block in _blocks(self.intra)]
                states.total = [torch.zeros_like(x[:, :1]) for _ in self.memory]
            y, x = x[:, : size - states.position], x[:, size - states.position :]
            states.position = (states.position + y.shape[1]) % size
            for index, intra in enumerate(_blocks(self.intra)):
                y = intra.step(y, states.intra[index])
                if index < len(self.memory):
                    states.total[index] += y.sum(1, keepdim=True)
                    y = y + states.context[index]
            done.append(y)
            if states.position == 0:  # the chunk is complete: the next one gets its memory
                for index, memory in enumerate(_blocks(self.memory)):
                    mean = states.total[index] / size
                    states.context[index] = memory.step(mean, states.memory[index])
        return torch.cat(done, 1) if done else x
