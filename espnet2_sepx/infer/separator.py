"""A loaded model that takes recordings of any rate, any number of channels and any length.

Each recording runs through a ``Session``: channels are chosen, the rate is brought to the model's,
chunks are separated and joined (or, with a causal model, streamed), the rate is brought back.
Nothing but a chunk or two is in memory at any time.

Legend: N samples, n samples of a block, C channels, S speakers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from espnet2_sepx.errors import UserError
from espnet2_sepx.infer.align import Aligner, Joint, match_channels
from espnet2_sepx.infer.build import load_network
from espnet2_sepx.infer.causal import CausalEngine, why_not_streaming
from espnet2_sepx.infer.chunks import Chunk, Chunker
from espnet2_sepx.infer.find import find_model
from espnet2_sepx.infer.forward import EnhModel, frame_samples, separate
from espnet2_sepx.infer.overlap_add import OverlapAdd, fade
from espnet2_sepx.infer.resample import Resampler
from espnet2_sepx.profiling.model import sample_rate, stated_rate

Block = NDArray[np.float32]
Streams = NDArray[np.float32]

CHANNELS = ("mix", "first", "each", "all")
DTYPES = ("float32", "bf16")
CHUNK_S, OVERLAP_S = 12.0, 3.0
CHUNKS_OF = {"sepformer": (8.0, 2.0)}
"""Seconds of chunk and overlap, by separator, where another choice than the usual is better."""

_REACH = 0.875  # of the chunk: the most that neighbours may share, to bridge a pause
_BF16_DB = 20.0  # how far below the output its change by bfloat16 has to lie


@dataclass(frozen=True)
class Options:
    """How to separate; the command line says what each option means."""

    model: str
    model_file: str | None = None
    zoo: str | None = None
    fs: int | None = None
    chunk_s: float | None = None
    overlap_s: float | None = None
    channels: str = "mix"
    mixture_consistency: bool = False
    normalize_segment_scale: bool = False
    budget: float | None = None
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None


class Separator:
    """A model, and how to use it.

    Args:
        options: which model, and how.

    Attributes:
        fs: rate of the model in Hz.
        num_spk: S.
        not_causal: why the model cannot stream; None if it can.
        streams: whether recordings run through it as streams, not in chunks.

    Raises:
        UserError: no such model, or it does not have what the options ask of it.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        files = find_model(options.model, options.model_file, options.zoo)
        self.fs = sample_rate(files.config, options.fs, files.config_name)
        if (stated := stated_rate(files.config)) not in (None, self.fs):
            logging.getLogger(__name__).warning(
                f"--fs {self.fs}: {files.config_name} is for {stated} Hz; --fs is the rate of the "
                "model, recordings may have any"
            )
        self.model = load_network(files)
        self.num_spk = int(self.model.num_spk)
        self.not_causal = why_not_streaming(self.model)
        kind = str(files.config.get("separator")).lower()
        self.chunk, self.overlap = _chunking(options, kind, self.fs)
        if options.budget is not None:
            _set_budget(self.model, options.budget, kind)
        alone = options.channels in ("mix", "first") and not options.normalize_segment_scale
        self.streams = self.not_causal is None and alone
        _to_device(self.model, options.device, self.streams)
        self._checked = options.dtype != "bf16"

    def start(self, fs: int, channels: int, live: bool = False) -> Session:
        """Begin a recording of this rate (Hz) and number of channels."""
        return Session(self, fs, channels, live)

    def __call__(self, mixture: NDArray[Any], fs: int) -> Streams:
        """Separate a recording that is in memory.

        Args:
            mixture: ``(N,)`` or ``(N, C)``.
            fs: its rate in Hz.

        Returns:
            ``(S, N)``; with ``channels="each"`` ``(S, N, C)``.
        """
        mixture = np.asarray(mixture, np.float32)
        if mixture.ndim not in (1, 2):
            raise ValueError(f"mixture must be (N,) or (N, C), got shape {mixture.shape}")
        if not np.isfinite(mixture).all():
            raise ValueError("mixture must be finite, got NaN or infinity")
        block = mixture if mixture.ndim == 2 else mixture[:, None]
        session = self.start(fs, block.shape[1])
        streams = np.concatenate((session.push(block), session.flush()), 2)
        return streams.transpose(0, 2, 1) if self.options.channels == "each" else streams[:, 0]

    @torch.no_grad()
    def forward(self, mixture: Block) -> Streams:
        """One chunk at the model's rate through the model, ``(N, C) -> (S, C', N)``."""
        if self.options.channels == "each":
            return match_channels([self._forward(x[:, None]) for x in mixture.T])
        return self._forward(mixture)[:, None]

    def _forward(self, mixture: Block) -> NDArray[np.float32]:
        """``(N, C) -> (S, N)``."""
        samples = len(mixture)
        if not mixture.any():
            return np.zeros((self.num_spk, samples), np.float32)
        missing = max(frame_samples(self.model, self.fs) - samples, 0)
        x = torch.from_numpy(np.pad(mixture, ((0, missing), (0, 0)))[None])
        x = x[:, :, 0] if x.shape[2] == 1 and self.options.channels != "all" else x
        return _finite(self._run(x.to(self.options.device))[:, :samples], self.options)

    def _run(self, x: torch.Tensor) -> NDArray[np.float32]:
        if self.options.dtype != "bf16":
            return self._network(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            streams = self._network(x)
        if not self._checked:
            _check_close(streams, self._network(x))
            self._checked = True
        return streams

    def _network(self, x: torch.Tensor) -> NDArray[np.float32]:
        waves = separate(self.model, x, self.fs)
        return torch.cat(waves).float().cpu().numpy()


class ChunkEngine:
    """Separates chunk by chunk and joins; the twin of ``CausalEngine`` for all other models.

    Args:
        separator: what separates a chunk.
        chunker, aligner: by default those that suit the separator.

    Attributes:
        joints: how the chunks were joined, one fewer than there are chunks.
    """

    latency = None

    def __init__(
        self,
        separator: Separator,
        chunker: Chunker | None = None,
        aligner: Aligner | None = None,
    ) -> None:
        self._separator = separator
        self._chunker = chunker or _chunker(separator)
        self._aligner = aligner or Aligner(separator.num_spk, separator.fs)
        self._sum: OverlapAdd | None = None
        self.joints: list[Joint] = []

    def push(self, block: Block) -> Streams:
        """Samples ``(n, C)``; returns what is ready, ``(S, C', m)``."""
        return self._add(self._chunker.push(block), block.shape[1])

    def flush(self) -> Streams:
        """The rest; ends the stream."""
        rest = self._add(self._chunker.flush(), 1)
        return (
            rest if self._sum is None else np.concatenate((rest, self._sum.pop(self._sum.end)), 2)
        )

    def _add(self, chunks: list[Chunk], channels: int) -> Streams:
        ready = []
        for chunk in chunks:
            streams = self._separator.forward(chunk.samples)
            if self._separator.options.normalize_segment_scale:
                streams = _with_energy_of(chunk.samples, streams)
            if self._sum is None:
                self._sum = OverlapAdd(*streams.shape[:2])
                self._aligner.learn(streams)
            else:
                past = self._sum.peek(chunk.start, self._sum.end)
                joint = self._aligner.join(past, streams, chunk.start)
                self.joints.append(joint)
                streams = streams[list(joint.order)]
                self._aligner.learn(streams[:, :, past.shape[2] :], joint.confidence)
            weight = fade(streams.shape[2], self._separator.overlap)
            self._sum.add(chunk.start, streams, weight)
            ready.append(self._sum.pop(chunk.start))
        if not ready:
            width = channels if self._separator.options.channels == "each" else 1
            return np.zeros((self._separator.num_spk, width, 0), np.float32)
        return np.concatenate(ready, 2)


class Session:
    """One recording on its way through; ``push`` its blocks, then ``flush``.

    Attributes:
        engine: ChunkEngine, or CausalEngine where the model allows it.
    """

    def __init__(self, separator: Separator, fs: int, channels: int, live: bool) -> None:
        options = separator.options
        self._options = options
        if live and not separator.streams:
            reason = separator.not_causal or "these --channels or scales need whole chunks"
            raise UserError(
                f"--stream: {options.model} cannot separate as it listens: {reason}; give a causal "
                "model, or separate the recording when it is complete"
            )
        self.engine: ChunkEngine | CausalEngine
        if separator.streams:
            self.engine = CausalEngine(separator.model, options.device)
        else:
            self.engine = ChunkEngine(separator)
        used = channels if options.channels in ("each", "all") else 1
        tracks = separator.num_spk * (used if options.channels == "each" else 1)
        self._down = Resampler(fs, separator.fs, used)
        self._up = Resampler(separator.fs, fs, tracks)
        self._mixture = np.zeros((0, used), np.float32)  # not yet come out, for consistency
        self._came = self._left = 0

    def push(self, block: Block) -> Streams:
        """Samples ``(n, C)``; returns what is ready, ``(S, C', m)``, C' = C with "each", else 1."""
        self._came += len(block)
        block = self._down.push(self._choose(block))
        return self._out(self._up.push, self._checked(block, self.engine.push(block)))

    def flush(self) -> Streams:
        """The rest, so that as many samples have left as came; ends the recording."""
        block = self._down.flush()
        parts = [self._checked(block, self.engine.push(block))]
        parts.append(self._checked(block[:0], self.engine.flush()))
        ready = self._out(self._up.push, np.concatenate(parts, 2))
        rest = self._out(lambda _: self._up.flush(), ready[:, :, :0])
        ready = np.concatenate((ready, rest), 2)
        missing = self._came - self._left
        self._left = self._came
        if missing < 0:
            return ready[:, :, :missing]
        return np.pad(ready, ((0, 0), (0, 0), (0, missing)))

    def _choose(self, block: Block) -> Block:
        if self._options.channels == "mix":
            return block if block.shape[1] == 1 else block.mean(1, keepdims=True)
        return block[:, :1] if self._options.channels == "first" else block

    def _checked(self, block: Block, streams: Streams) -> Streams:
        """What the engine gave after ``block``, made consistent with the mixture if asked."""
        streams = _finite(streams, self._options)
        if not self._options.mixture_consistency:
            return streams
        self._mixture = np.concatenate((self._mixture, block))
        ready = streams.shape[2]
        mixture, self._mixture = self._mixture[:ready].T, self._mixture[ready:]
        if len(mixture) != streams.shape[1]:
            mixture = mixture[:1]  # of a model for arrays: its reference channel
        return streams + (mixture - streams.sum(0)) / len(streams)

    def _out(self, resample: Any, streams: Streams) -> Streams:
        """Resample ``(S, C', m)`` as S C' channels."""
        speakers, channels, _ = streams.shape
        flat = resample(streams.reshape(speakers * channels, -1).T)
        self._left += len(flat)
        return np.ascontiguousarray(flat.T).reshape(speakers, channels, -1)


def _finite(streams: NDArray[np.float32], options: Options) -> NDArray[np.float32]:
    if not np.isfinite(streams).all():
        raise UserError(
            f"{options.model}: the model's output is not finite; try --dtype float32, or another "
            "checkpoint (--model_file)"
        )
    return streams


def _chunker(separator: Separator) -> Chunker:
    chunk, overlap = separator.chunk, separator.overlap
    reach = min(max(round(_REACH * chunk), overlap), chunk - 1)
    return Chunker(chunk, overlap, reach, separator.fs)


def _chunking(options: Options, kind: str, fs: int) -> tuple[int, int]:
    chunk_s, overlap_s = CHUNKS_OF.get(kind, (CHUNK_S, OVERLAP_S))
    chunk_s = options.chunk_s or chunk_s
    overlap_s = min(overlap_s, chunk_s / 4) if options.overlap_s is None else options.overlap_s
    if not 0 <= overlap_s < chunk_s:
        raise UserError(
            f"--overlap_s {overlap_s:g}: must lie in [0, chunk_s = {chunk_s:g}); give a smaller one"
        )
    return max(round(chunk_s * fs), 2), round(overlap_s * fs)


def _set_budget(model: EnhModel, budget: float, kind: str) -> None:
    if not hasattr(model.separator, "external_utilization"):
        raise UserError(
            f"--budget: {kind} has no such knob, its cost is fixed; of the separators here dsn has"
        )
    if not 0 < budget <= 1:
        raise UserError(f"--budget {budget:g}: must lie in (0, 1], the part of the work to do")
    model.separator.external_utilization = budget


def _to_device(model: EnhModel, device: str, streams: bool) -> None:
    try:
        if streams:  # its encoder and decoder stay, see CausalEngine
            model.separator.to(device)
        else:
            model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--device {device}: cannot be used ({reason}); try --device cpu"
        ) from error


def _with_energy_of(mixture: Block, streams: Streams) -> Streams:
    """Scale so that the sum of the streams has the energy of the mixture, as ESPnet's segments."""
    wanted = np.linalg.norm(mixture) / np.sqrt(mixture.shape[1])
    found = np.linalg.norm(streams.sum(0)) / np.sqrt(streams.shape[1])
    return streams * (wanted / found) if found > 0 else streams


def _check_close(streams: NDArray[np.float32], exact: NDArray[np.float32]) -> None:
    error, power = (float(np.square(x).sum()) for x in (streams - exact, exact))
    if not error <= power * 10 ** (-_BF16_DB / 10):
        level = 10 * np.log10(power / error) if error > 0 else 0.0
        raise UserError(
            f"--dtype bf16: changes this model's output too much (only {level:.0f} dB below it, "
            f"{_BF16_DB:.0f} wanted); use --dtype float32"
        )
