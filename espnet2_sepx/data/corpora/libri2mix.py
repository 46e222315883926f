"""Libri2Mix: LibriSpeech mixed by the official tables, sample for sample as the official script.

A table gives each mixture two utterances, a WHAM! noise and their gains. Gains are applied at
16 kHz, then signals are resampled, cut to the shortest or padded to the longest *of all three*
(also where the noise is not mixed in), summed and written with 16 bits. A noise that is too short
is extended by itself with a cross-fade. Precision follows the official script: float32,
but float64 for an extended noise. (JorisCos/LibriMix, ``create_librimix_from_metadata.py``.)

What is not needed is not computed: for ``min`` only the beginnings are decoded and resampled, and
all rates and lengths are made from one reading.

Legend: N samples of a mixture.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_sepx.data.corpora.audio import BadFile, read_audio, to_pcm16
from espnet2_sepx.data.corpora.base import Corpus, Row, Subset, Variant, resampled_length
from espnet2_sepx.errors import UserError

FS = 16000
KINDS = ("mix_clean", "mix_both", "mix_single")
TABLES = {
    "train-100": "libri2mix_train-clean-100.csv",
    "train-360": "libri2mix_train-clean-360.csv",
    "dev": "libri2mix_dev-clean.csv",
    "test": "libri2mix_test-clean.csv",
}
_COLUMNS = ("mixture_ID", "source_1_path", "source_1_gain", "source_2_path", "source_2_gain")
_NOISE_COLUMNS = ("noise_path", "noise_gain")
_MARGIN = 64  # samples beyond the end that the resampling filter may look at
_PARTS = {
    "mix_clean": ("s1", "s2"),
    "mix_both": ("s1", "s2", "noise"),
    "mix_single": ("s1", "noise"),
}
Signals = list[np.ndarray]


class Libri2Mix(Corpus):
    """See the file header. ``types`` are the kinds of mixture to make, of ``KINDS``."""

    name = "libri2mix"
    subtype = "PCM_16"

    def __init__(self, root: Path, variants: Sequence[Variant], types: Sequence[str]) -> None:
        self.root = root
        self.variants = tuple(variants)
        self.types = tuple(kind for kind in KINDS if kind in types)
        noise = () if self.types == ("mix_clean",) else ("noise",)
        self.kinds = ("s1", "s2", *self.types, *noise)
        self.sums = {kind: _PARTS[kind] for kind in self.types}
        self.mixture = self.types[0]

    def describe(self) -> dict[str, Any]:
        return {}

    def samples(self, row: Row, frames: Sequence[int], variant: Variant) -> int:
        choose = min if variant.mode == "min" else max  # the noise is made as long as the longer
        return resampled_length(choose(frames[0], frames[1]), FS, variant.fs)

    def render(
        self, row: Row, frames: Sequence[int]
    ) -> Iterator[tuple[Variant, dict[str, np.ndarray]]]:
        lengths = {variant: self.samples(row, frames, variant) for variant in self.variants}
        needed = max(-(-count * FS // variant.fs) for variant, count in lengths.items()) + _MARGIN
        sources = read_sources(row, frames, needed)
        for fs in {variant.fs: None for variant in self.variants}:  # keeps the order
            resampled = [resample(signal, fs) for signal in sources]
            for variant, count in lengths.items():
                if variant.fs == fs:
                    yield variant, self._mix([_fit(signal, count) for signal in resampled])

    def _mix(self, signals: Signals) -> dict[str, np.ndarray]:
        named = dict(zip(("s1", "s2", "noise"), signals, strict=False))  # no noise: two signals
        named |= {kind: mix([named[part] for part in _PARTS[kind]]) for kind in self.types}
        return {kind: to_pcm16(named[kind]) for kind in self.kinds}


def read_sources(row: Row, frames: Sequence[int], needed: int | None = None) -> Signals:
    """Sources, and the noise if there is one, at 16 kHz, times their gains.

    At most ``needed`` samples each.
    """
    longest = max(frames[:2])
    stop = longest if needed is None else min(needed, longest)
    signals = [read_audio(file, stop=stop) for file in row.files]
    if len(frames) == 3 and frames[2] < longest:
        noise = signals[2] if frames[2] <= stop else read_audio(row.files[2])
        signals[2] = extend_noise(noise, longest, stop, row.files[2])
    return [signal * gain for signal, gain in zip(signals, row.values, strict=True)]


@functools.lru_cache(maxsize=1)
def _fades() -> tuple[np.ndarray, np.ndarray]:
    """Rise and fall of half a second, both with the middle of the window."""
    window = np.hanning(FS + 1)
    return window[: FS // 2 + 1], window[FS // 2 :: -1]


def extend_noise(noise: np.ndarray, length: int, stop: int, path: str) -> np.ndarray:
    """The first ``stop`` samples of a noise that is repeated, cross-faded, to ``length``.

    In float64, as cross-fading makes it, even if ``stop`` lies before the first of them.
    """
    rise, fall = _fades()
    if len(noise) <= len(rise):
        raise BadFile(path, "is shorter than half a second, too short to be extended")
    extended = noise.astype(np.float64)
    while len(extended) < min(length, stop + len(fall)):  # what follows changes the end only
        body, tail = extended[: -len(fall)], extended[-len(fall) :]
        faded = tail * fall + noise[: len(rise)] * rise
        extended = np.concatenate((body, faded, noise[len(rise) :]))
    return extended[:stop]


def resample(signal: np.ndarray, fs: int) -> np.ndarray:
    """From 16 kHz to ``fs``; ``scipy.signal.resample_poly`` with its default filter."""
    if fs == FS:
        return signal
    from scipy.signal import resample_poly  # takes longer to import than all the rest

    return resample_poly(signal, fs, FS, window=_default_filter(FS // fs, signal.dtype.str))


@functools.lru_cache(maxsize=4)
def _default_filter(down: int, dtype: str) -> np.ndarray:
    """What ``resample_poly`` designs anew at every call."""
    from scipy.signal import firwin

    return firwin(20 * down + 1, 1.0 / down, window=("kaiser", 5.0)).astype(dtype)


def _fit(signal: np.ndarray, length: int) -> np.ndarray:
    return signal[:length] if len(signal) >= length else np.pad(signal, (0, length - len(signal)))


def mix(signals: Signals) -> np.ndarray:
    """The sum, in the precision and order of the official script."""
    mixture = np.zeros_like(signals[0])
    for signal in signals:
        mixture += signal
    return mixture


# -- tables ----------------------------------------------------------------------------------------


def find_table(metadata: Path, subset: str) -> Path:
    """A table of a LibriMix checkout, of its ``metadata`` or of a folder with the tables alone.

    Raises:
        UserError: it is in none of these places.
    """
    name = TABLES[subset]
    places = ("metadata/Libri2Mix", "Libri2Mix", "librimix", ".", "metadata/librimix")
    for place in places:
        if (metadata / place / name).is_file():
            return metadata / place / name
    raise UserError(
        f"{metadata}: has no {name}; --metadata_dir takes a checkout of "
        "https://github.com/JorisCos/LibriMix, or a folder with the tables"
    )


def read_subset(
    table: Path, subset: str, set_name: str, speech: Path, noise: Path | None
) -> Subset:
    """The rows of a table; without a folder of noise, the noises are left out.

    Raises:
        UserError: missing columns, or a value that is no number.
    """
    columns = _COLUMNS if noise is None else _COLUMNS + _NOISE_COLUMNS
    rows = []
    with open(table, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        lacking = [name for name in columns if name not in (reader.fieldnames or ())]
        if lacking:
            raise UserError(f"{table}: lacks column {lacking[0]}; restore the official table")
        for number, line in enumerate(reader, start=2):
            try:
                rows.append(_row(line, speech, noise))
            except (ValueError, TypeError) as error:
                raise UserError(f"{table}, line {number}: {error}; restore the table") from error
    if not rows:
        raise UserError(f"{table}: has no rows; restore the official table")
    return Subset(subset, set_name, rows)


def _row(line: dict[str, str], speech: Path, noise: Path | None) -> Row:
    name = line["mixture_ID"]
    files = [f"{speech}/{line[f'source_{n}_path']}" for n in (1, 2)]
    gains = [float(line[f"source_{n}_gain"]) for n in (1, 2)]
    if noise is not None:
        files.append(f"{noise}/{line['noise_path']}")
        gains.append(float(line["noise_gain"]))
    first, second = (part.split("-")[0] for part in name.split("_"))
    return Row(name, name, (first, second), tuple(files), tuple(gains))
