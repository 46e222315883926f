"""Reading and writing the audio of corpora: exact, and with one kind of error for a bad file.

Read are WAV, FLAC and whatever else libsndfile knows, and NIST SPHERE as the LDC ships it
(``.wv1``), shorten-compressed or not. Written is WAV by our own few lines: the same bytes whenever
the samples are the same (libsndfile puts the time of day into float files), handed to the system in
one piece, so that a full disk is noticed.

Legend: N samples.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from espnet2_sepx.errors import UserError

_SPHERE_MAGIC = b"NIST_1A"
_SPHERE_SUFFIXES = (".wv1", ".wv2", ".sph")
_HEADER_BYTES = {"PCM_16": 44, "FLOAT": 58}
_SAMPLE_BYTES = {"PCM_16": 2, "FLOAT": 4}


class BadFile(UserError):
    """A file of a corpus that cannot be used: ``path`` and, in words, ``reason``."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Header(NamedTuple):
    """What the beginning of a file says about it."""

    fs: int
    frames: int
    channels: int


def read_header(path: str | Path) -> Header:
    """Rate, length and channels of a file.

    Raises:
        BadFile: it is missing or no audio.
    """
    path = str(path)
    with _bad_file(path):
        if not path.lower().endswith(_SPHERE_SUFFIXES):
            info = soundfile.info(path)
            return Header(info.samplerate, info.frames, info.channels)
        with open(path, "rb") as stream:
            fields = _sphere_fields(stream.read(1024))
        return Header(fields["sample_rate"], fields["sample_count"], fields["channel_count"])


def read_audio(path: str | Path, dtype: str = "float32", stop: int | None = None) -> np.ndarray:
    """First channel of a file, ``(N,)``, at most ``stop`` samples.

    Raises:
        BadFile: it is missing, no audio, or damaged.
    """
    path = str(path)
    with _bad_file(path):
        if path.lower().endswith(_SPHERE_SUFFIXES):
            source: str | io.BytesIO = io.BytesIO(_sphere_to_wav(path))
        else:
            source = path
        with soundfile.SoundFile(source) as stream:
            wanted = stream.frames if stop is None else min(stop, stream.frames)
            signal = stream.read(wanted, dtype=dtype)
        if len(signal) != wanted:
            raise BadFile(path, f"is damaged: ends after {len(signal)} of {wanted} samples")
    return signal if signal.ndim == 1 else signal[:, 0]


@contextlib.contextmanager
def _bad_file(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BadFile(path, "is missing") from error
    except (soundfile.SoundFileError, OSError) as error:
        if not os.path.exists(path):
            raise BadFile(path, "is missing") from error
        reason = re.sub(r"^.*?: ", "", str(error)).rstrip(".")
        raise BadFile(path, f"cannot be read as audio ({reason})") from error


def _sphere_fields(header: bytes) -> dict[str, int]:
    """The numbers of a SPHERE header."""
    if not header.startswith(_SPHERE_MAGIC):
        raise OSError("no SPHERE header")
    pairs = re.findall(r"(\w+) -i (\d+)", header.decode("latin"))
    fields = {name: int(value) for name, value in pairs}
    for name in ("sample_rate", "sample_count"):
        if name not in fields:
            raise OSError(f"SPHERE header without {name}")
    return {"channel_count": 1, **fields}


def _sphere_to_wav(path: str) -> bytes:
    try:
        import desphere
    except ImportError as error:
        raise ImportError(
            'SPHERE files need a decoder: pip install "espnet2_sepx[wsj0]" (desphere)'
        ) from error
    with open(path, "rb") as stream:
        content = stream.read()
    try:
        return desphere.transcode_bytes(content)
    except desphere.DesphereError as error:
        raise BadFile(path, f"cannot be decoded ({error})") from error


# -- writing ---------------------------------------------------------------------------------------


def wav_size(samples: int, subtype: str) -> int:
    """Bytes of the file that ``wav_bytes`` makes of so many samples."""
    return _HEADER_BYTES[subtype] + _SAMPLE_BYTES[subtype] * samples


def wav_samples(size: int, subtype: str) -> int:
    """Samples of a file of so many bytes; the reverse of ``wav_size``."""
    return (size - _HEADER_BYTES[subtype]) // _SAMPLE_BYTES[subtype]


def wav_bytes(signal_N: np.ndarray, fs: int) -> bytes:
    """A mono WAV file: 16-bit for int16, IEEE float for float32 samples."""
    size = signal_N.nbytes
    if signal_N.dtype == np.int16:
        code, width, extra = 1, 2, b""
        extension = b""
    else:
        assert signal_N.dtype == np.float32, signal_N.dtype
        code, width = 3, 4
        extra = struct.pack("<4sII", b"fact", 4, len(signal_N))
        extension = struct.pack("<H", 0)
    form = struct.pack("<HHIIHH", code, 1, fs, fs * width, width, 8 * width) + extension
    chunks = struct.pack("<4sI", b"fmt ", len(form)) + form + extra
    chunks += struct.pack("<4sI", b"data", size)
    head = struct.pack("<4sI4s", b"RIFF", 4 + len(chunks) + size, b"WAVE") + chunks
    return b"".join((head, np.ascontiguousarray(signal_N).data))


def write_whole(folder: Path, name: str, data: bytes) -> None:
    """A file that appears complete or not at all.

    Raises:
        UserError: it cannot be written, for example because the disk is full.
    """
    path, temporary = f"{folder}/{name}", f"{folder}/.{name}.tmp"
    try:
        with open(temporary, "wb", buffering=0) as stream:
            view = memoryview(data)
            while view:
                view = view[stream.write(view) :]
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{folder}: no space left on the disk; make room and run the same command "
                "again, it continues where it stopped"
            ) from error
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def to_pcm16(signal_N: np.ndarray) -> np.ndarray:
    """int16 samples of float signals, as libsndfile (1.1 and later) converts them.

    It scales to 32 bits, rounds, and drops the lower 16. What exceeds full scale is clipped.
    """
    scaled = signal_N * signal_N.dtype.type(2.0**31)
    np.rint(scaled, out=scaled)
    scaled *= signal_N.dtype.type(2.0**-16)
    np.floor(scaled, out=scaled)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)


def round_pcm16(signal_N: np.ndarray) -> np.ndarray:
    """int16 samples by rounding, as the scripts of wsj0-2mix do; below full scale only."""
    return np.round(2**15 * signal_N).astype(np.int16)
