"""Live separation: sound from a pipe in, separated streams out while it is still coming.

The input is WAV (its header says what follows) or raw PCM (the options do). The output is one WAV
file per speaker, complete up to the last block at any time, or raw samples to a pipe, one channel
per speaker.

Legend: N samples, C channels, S speakers.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
from numpy.typing import NDArray

from espnet2_sepx.errors import UserError
from espnet2_sepx.infer.separator import Separator

Block = NDArray[np.float32]

FORMATS = {"s16le": ("<i2", 2.0**15), "s32le": ("<i4", 2.0**31), "f32le": ("<f4", 1.0)}
"""Names as in ffmpeg and sox: type of a sample, and its full scale."""

_WAV_FORMATS = {(1, 16): "s16le", (1, 32): "s32le", (3, 32): "f32le"}
_EXTENSIBLE = 0xFFFE


@dataclass(frozen=True)
class PCM:
    """Raw samples: sample format (a key of ``FORMATS``), rate in Hz, channels."""

    format: str
    fs: int
    channels: int

    @property
    def frame_bytes(self) -> int:
        return np.dtype(FORMATS[self.format][0]).itemsize * self.channels

    def decode(self, data: bytes) -> Block:
        """Whole frames to ``(N, C)``."""
        kind, scale = FORMATS[self.format]
        return (np.frombuffer(data, kind) / scale).astype(np.float32).reshape(-1, self.channels)

    def encode(self, block: Block) -> bytes:
        """``(N, C)`` to bytes; integers have limits, and what exceeds them is limited."""
        kind, scale = FORMATS[self.format]
        if scale != 1.0:
            block = np.clip(np.rint(block.astype(np.float64) * scale), -scale, scale - 1)
        return block.astype(kind).tobytes()


@dataclass(frozen=True)
class LiveReport:
    """What a live run was like; latency in seconds, None of what does not apply."""

    seconds: float
    rtf: float
    algorithmic_latency_s: float
    longest_wait_s: float


def read_header(stream: IO[bytes], raw: PCM | None) -> tuple[PCM, bytes]:
    """What comes, and its first bytes where they are no header.

    Args:
        raw: what to assume if there is no WAV header; None: there must be one.

    Raises:
        UserError: neither WAV nor described, or WAV of a kind that is not known here.
    """
    start = _read_exactly(stream, 12)
    if start[:4] != b"RIFF" or start[8:12] != b"WAVE":
        if raw is None:
            raise UserError(
                "standard input: is not WAV; for raw samples say which, e.g. "
                "--pcm s16le --pcm_fs 16000"
            )
        return raw, start
    found: PCM | None = None
    while True:
        header = _read_exactly(stream, 8)
        name, size = struct.unpack("<4sI", header.ljust(8, b"\0"))
        if name == b"data":  # its size is unknown to who writes into a pipe, and not looked at
            if found is None:
                raise UserError("standard input: WAV without a format; check what writes it")
            return found, b""
        body = _read_exactly(stream, size + size % 2)
        if len(header) < 8 or len(body) < size:
            raise UserError("standard input: WAV header without samples; check what writes it")
        if name == b"fmt ":
            found = _wav_format(body)


def _wav_format(body: bytes) -> PCM:
    kind, channels, fs, _, _, bits = struct.unpack_from("<HHIIHH", body.ljust(16, b"\0"))
    if kind == _EXTENSIBLE and len(body) >= 26:
        (kind,) = struct.unpack_from("<H", body, 24)
    name = _WAV_FORMATS.get((kind, bits))
    if name is None or not channels or not fs:
        raise UserError(
            f"standard input: WAV of {bits} bits, kind {kind}; expected 16 or 32 bits integer or "
            "32 bits float"
        )
    return PCM(name, fs, channels)


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    """So many bytes, fewer only at the end."""
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_blocks(stream: IO[bytes], pcm: PCM, first: bytes, block_s: float) -> Iterator[Block]:
    """Blocks of at most ``block_s``, ``(N, C)``, each as soon as it has come."""
    size = max(round(block_s * pcm.fs), 1) * pcm.frame_bytes
    held = first
    while part := _read_exactly(stream, size - len(held)):
        held += part
        whole = len(held) - len(held) % pcm.frame_bytes
        yield _checked(pcm.decode(held[:whole]))
        held = held[whole:]
    whole = len(held) - len(held) % pcm.frame_bytes
    if whole:
        yield _checked(pcm.decode(held[:whole]))


def _checked(block: Block) -> Block:
    if not np.isfinite(block).all():
        raise UserError("standard input: has NaN or infinite samples; check --pcm")
    return block


class Sinks:
    """Where the streams go: a WAV file per speaker in a folder, or raw samples to a pipe."""

    def __init__(self, output: str, pcm: PCM, speakers: int, pipe: IO[bytes]) -> None:
        self._pipe = pipe if output == "-" else None
        self._pcm = pcm
        self.files: list[soundfile.SoundFile] = []
        if self._pipe is None:
            folder = Path(output)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self.files = [
                    soundfile.SoundFile(
                        str(folder / f"spk{n}.wav"), "w", pcm.fs, 1, "FLOAT", format="WAV"
                    )
                    for n in range(1, speakers + 1)
                ]
            except (OSError, soundfile.LibsndfileError) as error:
                raise UserError(f"--output {output}: cannot be written ({error})") from error

    def write(self, streams: NDArray[np.float32]) -> None:
        """``(S, 1, N)``"""
        if self._pipe is not None:
            self._pipe.write(self._pcm.encode(streams[:, 0].T))
            self._pipe.flush()
            return
        for file, stream in zip(self.files, streams[:, 0], strict=True):
            file.write(stream)
            file.flush()

    def close(self) -> None:
        for file in self.files:
            file.close()


def separate_live(
    separator: Separator,
    source: IO[bytes],
    output: str,
    pipe: IO[bytes],
    raw: PCM | None,
    block_s: float,
) -> LiveReport:
    """Separate what comes from ``source`` until it ends.

    Args:
        output: folder for ``spk1.wav``, ..., or "-" for raw samples to ``pipe``, in the format of
            the input and with a channel per speaker.
        raw: format of input without a header.
        block_s: how much is taken in at once.

    Raises:
        UserError: the model is not causal, or the input is not what it should be.
    """
    pcm, first = read_header(source, raw)
    session = separator.start(pcm.fs, pcm.channels, live=True)
    sinks = Sinks(output, pcm, separator.num_spk, pipe)
    samples, worked, longest = 0, 0.0, 0.0
    try:
        for block in read_blocks(source, pcm, first, block_s):
            begin = time.perf_counter()
            sinks.write(session.push(block))
            took = time.perf_counter() - begin
            samples, worked, longest = samples + len(block), worked + took, max(longest, took)
        begin = time.perf_counter()
        sinks.write(session.flush())
        worked += time.perf_counter() - begin
    finally:
        sinks.close()
    seconds = samples / pcm.fs
    latency = (session.engine.latency or 0) / separator.fs
    return LiveReport(seconds, worked / seconds if seconds else 0.0, latency, longest)
