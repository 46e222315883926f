"""wsj0-2mix: WSJ0 mixed by MERL's lists, in MERL's order of operations.

Resample, pad to the longer, divide by the square root of the active power (ITU-T P.56, from the
tables), apply the levels, sum; cut to the shorter for ``min``; then one gain for mixture and
sources, ``max(1, peaks) / 0.9``; round to 16 bits. Precision follows the Python port of the Matlab
scripts (mpariente/pywsj0-mix): float32 up to the padding, float64 from there.

Legend: N samples of a mixture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_sepx.data.corpora.audio import read_audio, round_pcm16
from espnet2_sepx.data.corpora.base import Corpus, Row, Subset, Variant, resampled_length
from espnet2_sepx.data.corpora.libri2mix import resample
from espnet2_sepx.errors import UserError

FS = 16000
SETS = {"train": "tr", "valid": "cv", "test": "tt"}
_ACTIVE_LEVELS = ("activlev_si_tr_s.txt", "activlev_si_dt_05.txt", "activlev_si_et_05.txt")
_LISTS = (
    "expected mix_2_spk_{tr,cv,tt}.txt and activlev_si_{tr_s,dt_05,et_05}.txt there or in a "
    "sub-folder, as in https://github.com/mpariente/pywsj0-mix"
)


class Wsj0Mix(Corpus):
    """See the file header."""

    name = "wsj0_2mix"
    subtype = "PCM_16"
    kinds = ("mix", "s1", "s2")
    mixture = "mix"

    def __init__(self, root: Path, variants: Sequence[Variant]) -> None:
        self.root = root
        self.variants = tuple(variants)
        self.sums = {"mix": ("s1", "s2")}

    def describe(self) -> dict[str, Any]:
        return {}

    def samples(self, row: Row, frames: Sequence[int], variant: Variant) -> int:
        choose = min if variant.mode == "min" else max
        return resampled_length(choose(frames), FS, variant.fs)

    def render(
        self, row: Row, frames: Sequence[int]
    ) -> Iterator[tuple[Variant, dict[str, np.ndarray]]]:
        signals = [read_audio(file) for file in row.files]
        for fs in {variant.fs: None for variant in self.variants}:
            resampled = [resample(signal, fs) for signal in signals]
            sources = self._scale(resampled, row.values)
            for variant in self.variants:
                if variant.fs == fs:
                    shortest = min(map(len, resampled))
                    yield (
                        variant,
                        _finish(sources[:, :shortest] if variant.mode == "min" else sources),
                    )

    @staticmethod
    def _scale(signals: Sequence[np.ndarray], values: Sequence[float]) -> np.ndarray:
        """Sources at their levels, padded to the longest: ``(2, N)`` float64."""
        longest = max(map(len, signals))
        powers, levels_db = values[:2], values[2:]
        padded = [np.hstack((signal, np.zeros(longest - len(signal)))) for signal in signals]
        return np.stack(
            [
                signal / np.sqrt(power) * 10 ** (level / 20)
                for signal, power, level in zip(padded, powers, levels_db, strict=True)
            ]
        )


def _finish(sources: np.ndarray) -> dict[str, np.ndarray]:
    mixture = np.sum(sources, axis=0)
    gain = np.max([1.0, np.abs(mixture).max(), np.abs(sources).max()]) / 0.9
    first, second = sources / gain
    return {
        "mix": round_pcm16(mixture / gain),
        "s1": round_pcm16(first),
        "s2": round_pcm16(second),
    }


# -- lists -----------------------------------------------------------------------------------------


def find_lists(metadata: Path) -> dict[str, Path]:
    """The lists and tables by name.

    Raises:
        UserError: one of them is not there.
    """
    names = [f"mix_2_spk_{subset}.txt" for subset in SETS.values()]
    found: dict[str, Path] = {}
    for folder in ("", "metadata", "metadata/activlev", "activlev", "wsj0mix", "metadata/wsj0mix"):
        for name in (*names, *_ACTIVE_LEVELS):
            if (metadata / folder / name).is_file():
                found.setdefault(name, metadata / folder / name)
    for name in (*names, *_ACTIVE_LEVELS):
        if name not in found:
            raise UserError(f"{metadata}: has no {name}; {_LISTS}")
    return found


def read_subsets(
    lists: dict[str, Path], utterances: dict[str, str], sets: Sequence[str]
) -> list[Subset]:
    """The mixtures of train, valid and test, as far as asked for.

    An utterance that is not in the corpus gets the path it should have, to be reported as missing.

    Raises:
        UserError: a line that cannot be read, or an utterance without active level.
    """
    powers: dict[str, float] = {}
    for name in _ACTIVE_LEVELS:
        for number, fields in _lines(lists[name], 2):
            powers[fields[0].lower()] = _number(fields[1], lists[name], number)
    subsets = []
    for set_name in sets:
        subset = SETS[set_name]
        path = lists[f"mix_2_spk_{subset}.txt"]
        rows = [
            _row(fields, path, number, powers, utterances) for number, fields in _lines(path, 4)
        ]
        subsets.append(Subset(subset, set_name, rows))
    return subsets


def _row(
    fields: list[str],
    path: Path,
    number: int,
    powers: dict[str, float],
    utterances: dict[str, str],
) -> Row:
    names = [Path(fields[position]).stem for position in (0, 2)]
    levels = [_number(fields[position], path, number) for position in (1, 3)]
    for name in names:
        if name.lower() not in powers:
            raise UserError(f"{path}, line {number}: {name} has no active level; {_LISTS}")
    files = tuple(
        utterances.get(name.lower(), _where_it_should_be(fields[position], utterances))
        for name, position in zip(names, (0, 2), strict=True)
    )
    # as MERL: up to five significant digits, as they stand in the list
    name = f"{names[0]}_{levels[0]:.8g}_{names[1]}_{levels[1]:.8g}"
    return Row(
        name,
        utterance_id(name),
        speakers_of(name),
        files,
        (powers[names[0].lower()], powers[names[1].lower()], *levels),
    )


def _where_it_should_be(entry: str, utterances: dict[str, str]) -> str:
    """``wsj0/si_tr_s/40n/40na010x.wav`` below the folder in which its neighbours are."""
    neighbour = Path(next(iter(utterances.values())))
    return str(neighbour.parents[3] / entry)


def speakers_of(name: str) -> tuple[str, str]:
    """Speakers of a mixture: the first three characters of its utterances."""
    first, _, second, _ = name.split("_")
    return first[:3], second[:3]


def utterance_id(name: str) -> str:
    """As ESPnet calls it, so that sorting by utterance sorts by speaker."""
    return f"{'_'.join(speakers_of(name))}_{name}"


def _lines(path: Path, fields: int) -> Iterator[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it") from error
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if len(words) != fields:
            raise UserError(f"{path}, line {number}: expected {fields} fields; restore the list")
        yield number, words


def _number(word: str, path: Path, line: int) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise UserError(f"{path}, line {line}: {word!r} is no number; restore it") from error
