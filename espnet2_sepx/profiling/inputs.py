"""What a measurement processes: noise, a recording, or the recordings of a data directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from espnet2_sepx.data.kaldi import read_scp
from espnet2_sepx.errors import UserError


def noise(samples: int, channels: int = 1, seed: int = 0) -> Tensor:
    """Gaussian noise at a speech-like level, (1, samples) or (1, samples, channels)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, samples) if channels == 1 else (1, samples, channels)
    return 0.1 * torch.randn(shape, generator=generator)


def recording(path: str | Path, fs: int, samples: int | None = None) -> Tensor:
    """The first ``samples`` of a recording (all of it by default), (1, samples[, channels])."""
    audio = _read(path, fs)
    if samples is not None and len(audio) < samples:
        raise UserError(
            f"{path}: {len(audio) / fs:g} s long, {samples / fs:g} s asked for; "
            "give a smaller --seconds"
        )
    return torch.from_numpy(audio[:samples])[None]


def repeated(audio: Tensor, samples: int) -> Tensor:
    """``(1, length[, channels])`` as often as it takes, cut at ``samples``."""
    times = -(-samples // audio.shape[1])
    return torch.cat([audio] * times, 1)[:, :samples]


def recordings(data_dir: str | Path, fs: int, samples: int, repeat: bool = False) -> Tensor:
    """Mixtures of a data directory one after the other, cut at ``samples``.

    If they are too short, they start again (``repeat``) or it is a ``UserError``.
    """
    scp = Path(data_dir) / "wav.scp"
    pieces: list[np.ndarray] = []
    missing = samples
    for path in read_scp(scp).values():
        pieces.append(_read(path, fs)[:missing])
        missing -= len(pieces[-1])
        if missing == 0:
            return torch.from_numpy(np.concatenate(pieces))[None]
    if repeat and pieces:
        return repeated(torch.from_numpy(np.concatenate(pieces))[None], samples)
    raise UserError(
        f"{scp}: {(samples - missing) / fs:g} s in all, {samples / fs:g} s asked for; "
        "give a smaller --seconds"
    )


def reference(path: str | Path, fs: int, samples: int) -> np.ndarray:
    """One speaker of a mixture, (samples,); ``UserError`` if it does not fit the mixture."""
    signal = _read(path, fs)
    if signal.shape != (samples,):
        raise UserError(
            f"{path}: has shape {signal.shape}, its mixture {samples} samples; "
            "prepare the data again"
        )
    return signal


def _read(path: str | Path, fs: int) -> np.ndarray:
    try:
        audio, rate = soundfile.read(str(path), dtype="float32")
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot read audio ({error}); give a WAV or FLAC file") from error
    if rate != fs:
        raise UserError(f"{path}: sampled at {rate} Hz, measured at {fs} Hz; resample it")
    if not np.isfinite(audio).all():
        raise UserError(f"{path}: holds samples that are not finite; repair or replace it")
    return audio
