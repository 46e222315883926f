"""WHAM!: wsj0-2mix with noise from the city, by the gains that come with the noise.

``wham_noise/metadata/scaling_{tr,cv,tt}.npz`` has, for every rate and length, the gain that brings
a WSJ0 utterance to its level in wsj0-2mix, that of the speech in WHAM!, that of the noise, and
where in the noise the speech starts. Sources come from wsj0-2mix (16 bit), or are made from WSJ0 in
the same arithmetic. ``min``: the noise is cut to the mixture. ``max``: the speech lies within the
noise. Files are 32-bit float, and mixtures exact sums. (WHAM!'s own scripts, ``wham_scripts``.)

Legend: N samples of a mixture.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_sepx.data.corpora.audio import BadFile, read_audio, round_pcm16
from espnet2_sepx.data.corpora.base import Corpus, Row, Subset, Variant, resampled_length
from espnet2_sepx.data.corpora.libri2mix import resample
from espnet2_sepx.data.corpora.wsj0_2mix import SETS, speakers_of, utterance_id
from espnet2_sepx.errors import UserError

FS = 16000
KINDS = ("mix_both", "mix_clean", "mix_single")
_PARTS = {
    "mix_clean": ("s1", "s2"),
    "mix_both": ("s1", "s2", "noise"),
    "mix_single": ("s1", "noise"),
}
NOISE_LAYOUT = (
    "expected wham_noise as distributed: DIR/{tr,cv,tt}/<mixture>.wav and "
    "DIR/metadata/scaling_{tr,cv,tt}.npz; https://wham.whisper.ai"
)


class Wham(Corpus):
    """See the file header.

    Args:
        from_wsj0: the sources are utterances of WSJ0, not signals of wsj0-2mix.
        types: kinds of mixture to make, of ``KINDS``.
    """

    name = "wham"
    subtype = "FLOAT"

    def __init__(
        self, root: Path, variants: Sequence[Variant], types: Sequence[str], from_wsj0: bool
    ) -> None:
        self.root = root
        self.variants = tuple(variants)
        self.types = tuple(kind for kind in KINDS if kind in types)
        self.kinds = (*self.types, "s1", "s2", "noise")
        self.sums = {kind: _PARTS[kind] for kind in self.types}
        self.mixture = self.types[0]
        self.from_wsj0 = from_wsj0

    def describe(self) -> dict[str, Any]:
        return {"from_wsj0": self.from_wsj0}

    def rates(self, row: Row) -> tuple[int, ...]:
        if self.from_wsj0:
            return (FS,) * 3
        return (self.variants[0].fs,) * 2 + (FS,)

    def samples(self, row: Row, frames: Sequence[int], variant: Variant) -> int:
        if variant.mode == "max":
            return resampled_length(frames[2], FS, variant.fs)
        speech_fs = self.rates(row)[0]
        return resampled_length(min(frames[:2]), speech_fs, variant.fs)

    def render(
        self, row: Row, frames: Sequence[int]
    ) -> Iterator[tuple[Variant, dict[str, np.ndarray]]]:
        speech = [read_audio(file, dtype="float64") for file in row.files[:2]]
        noise = read_audio(row.files[2], dtype="float64")
        start_16k = int(row.values[0])
        for index, variant in enumerate(self.variants):
            gains = row.values[1 + 4 * index : 5 + 4 * index]
            if self.from_wsj0:
                sources = [
                    round_pcm16(resample(signal, variant.fs) * gain) / 2**15 * gains[2]
                    for signal, gain in zip(speech, gains[:2], strict=True)
                ]
            else:
                sources = [signal * gains[2] for signal in speech]
            scaled_noise = resample(noise, variant.fs) * gains[3]
            start = start_16k // (FS // variant.fs)
            yield variant, self._mix(*_place(sources, scaled_noise, start, variant.mode, row))

    def _mix(self, *signals: np.ndarray) -> dict[str, np.ndarray]:
        named = dict(zip(("s1", "s2", "noise"), signals, strict=True))
        for kind in self.types:
            named[kind] = np.sum([named[part] for part in _PARTS[kind]], axis=0)
        return {kind: named[kind].astype(np.float32) for kind in self.kinds}


def _place(
    sources: list[np.ndarray], noise: np.ndarray, start: int, mode: str, row: Row
) -> tuple[np.ndarray, ...]:
    """Both sources and the noise, equally long: cut to the mixture, or within the noise."""
    if mode == "min":
        length = min(map(len, sources))
        cut = noise[start : start + length]
        if len(cut) < length:
            raise BadFile(row.files[2], "is shorter than its mixture")
        return sources[0][:length], sources[1][:length], cut
    if start + max(map(len, sources)) > len(noise):
        raise BadFile(row.files[2], "is shorter than its mixture")
    placed = np.zeros((2, len(noise)))
    for track, source in zip(placed, sources, strict=True):
        track[start : start + len(source)] = source
    return placed[0], placed[1], noise


# -- what comes with the noise ---------------------------------------------------------------------


def read_subset(
    noise_root: Path,
    set_name: str,
    variants: Sequence[Variant],
    utterances: Mapping[str, str] | None,
    wsj0_2mix: Path | None,
) -> Subset:
    """Rows of a set, from the tables of wham_noise.

    Args:
        utterances: paths of WSJ0's utterances by name; or
        wsj0_2mix: folder with ``tr``, ``cv`` and ``tt`` of the one variant asked for.

    Raises:
        UserError: the tables are missing or lack a variant.
    """
    subset = SETS[set_name]
    path = noise_root / "metadata" / f"scaling_{subset}.npz"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {NOISE_LAYOUT}")
    table = read_npz(path)
    names = [f"{variant.fs // 1000}k_{variant.mode}" for variant in variants]
    gains = ("wsjmix", "wham_speech", "wham_noise")
    keys = [f"scaling_{gain}_{name}" for name in names for gain in gains]
    for key in ("utterance_id", "speech_start_sample_16k", *keys):
        if key not in table:
            raise UserError(f"{path}: has no {key}; get wham_noise again")
    values = [table["speech_start_sample_16k"].astype(float)[:, None]]
    values += [table[key].reshape(len(values[0]), -1) for key in keys]
    lines = np.concatenate(values, axis=1).tolist()
    rows = []
    for identity, line in zip(table["utterance_id"], lines, strict=True):
        name = str(identity).removesuffix(".wav")
        if utterances is not None:
            words = name.split("_")
            speech = [utterances.get(word.lower(), word) for word in (words[0], words[2])]
        else:
            speech = [f"{wsj0_2mix}/{subset}/{kind}/{name}.wav" for kind in ("s1", "s2")]
        files = (*speech, f"{noise_root}/{subset}/{name}.wav")
        rows.append(Row(name, utterance_id(name), speakers_of(name), files, tuple(line)))
    return Subset(subset, set_name, rows)


class _TextOnly(pickle.Unpickler):
    """Reads arrays of strings, and refuses whatever else a pickle can do."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("multiarray", "scalar"),
            ("numpy", "str_"),
        }
        if (module.split(".")[-1], name) in allowed and module.split(".")[0] == "numpy":
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a table of names")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz``; arrays of objects only if they hold nothing but text.

    Raises:
        UserError: it cannot be read, or has other objects in it.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                arrays[member.removesuffix(".npy")] = _read_array(io.BytesIO(archive.read(member)))
    except (OSError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: cannot be read ({error}); get wham_noise again") from error
    return arrays


def _read_array(stream: io.BytesIO) -> np.ndarray:
    form = np.lib.format
    first = form.read_magic(stream) == (1, 0)
    _, _, dtype = (form.read_array_header_1_0 if first else form.read_array_header_2_0)(stream)
    if dtype.hasobject:
        return np.asarray(_TextOnly(stream).load()).astype(str)
    stream.seek(0)
    return np.lib.format.read_array(stream, allow_pickle=False)
