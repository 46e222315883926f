"""Separation in Python: ``espnet2_sepx.separate`` and ``espnet2_sepx.load_separator``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espnet2_sepx.infer.audio import Recording
from espnet2_sepx.infer.separator import Options, Separator


def load_separator(model: str, **options: Any) -> Separator:
    """A model that separates recordings of any rate and length, ``separator(mixture, fs)``.

    Args:
        model: experiment folder, packed model (zip), name in a zoo, or Hugging Face id.
        options: see ``espnet2_sepx.infer.separator.Options``; the options of ``sepx-separate``.

    Raises:
        UserError: no such model, or it does not have what the options ask of it.
    """
    return Separator(Options(model, **options))


def separate(
    recording: str | Path | NDArray[Any],
    model: str | Separator,
    fs: int | None = None,
    **options: Any,
) -> NDArray[np.float32]:
    """Separate one recording in memory; for many or long ones see ``sepx-separate``.

    Args:
        recording: path of an audio file, or samples ``(N,)`` or ``(N, channels)``.
        model: as in ``load_separator``, or what that returned.
        fs: rate of samples in Hz; a file knows its own.
        options: as in ``load_separator``.

    Returns:
        float32 array ``(speakers, N)`` at the rate of the recording; with ``channels="each"``
        ``(speakers, N, channels)``.

    Raises:
        UserError: the file or the model cannot be used.
        ValueError: samples without ``fs``.
    """
    separator = load_separator(model, **options) if isinstance(model, str) else model
    if isinstance(recording, np.ndarray):
        if fs is None:
            raise ValueError("fs must be given with samples, the rate in Hz, got None")
        return separator(recording, fs)
    with Recording(recording) as file:
        return separator(np.concatenate(list(file.blocks())), file.fs)
