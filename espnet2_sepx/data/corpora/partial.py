"""Partially overlapping mixtures, and noise that is there part of the time (DSN, section IV-A).

Made of fully overlapping mixtures (``min``). The speech of a source extends from its first to its
last active block, e_j samples. For a target ratio r one of the speakers is delayed until both
speak during r * min(e_1, e_2) samples; the mixture grows by the delay, gains stay, r = 1 is the
mixture as it was. The noise, where there is any, covers one stretch of the mixture, chosen at
random; beyond the end of the file it begins again.

Not in the paper, so decided here: the activity detector (``overlap.activity``), that the noise is
in one piece, and that 16-bit mixtures whose peaks would exceed 0.9 are lowered with their sources.

Legend: N samples of a mixture, L of what it is made of.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from espnet2_sepx.data.corpora.audio import BadFile, read_audio
from espnet2_sepx.data.corpora.base import Corpus, Row, Subset, Variant
from espnet2_sepx.data.corpora.problems import Problems
from espnet2_sepx.data.corpora.tables import Entry
from espnet2_sepx.data.overlap import active_span, block_length
from espnet2_sepx.data.partial import overlap_of_spans
from espnet2_sepx.data.workers import Run
from espnet2_sepx.files import atomic_write

_PEAK = round(0.9 * 2**15)


@dataclasses.dataclass(frozen=True)
class Condition:
    """A set to be made: overlap and noise activity, each drawn uniformly from a range.

    Attributes:
        name: of the set, and of its folder.
        overlap: lowest and highest ratio; 1 and 1 leaves mixtures as they are.
        noise: lowest and highest share of the mixture with noise.
        either_first: who starts is drawn; else it is the first speaker.
    """

    name: str
    overlap: tuple[float, float]
    noise: tuple[float, float] = (1.0, 1.0)
    either_first: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a mixture is made: a line of the table of a set.

    ``delay`` of the second speaker in samples; negative: of the first. ``overlap`` is measured.
    """

    name: str
    overlap: float
    delay: int
    noise_start: int
    noise_samples: int


class Partial(Corpus):
    """See the file header. Rows carry delay, start and length of the noise."""

    def __init__(
        self, name: str, root: Path, fs: int, kinds: tuple[str, ...], subtype: str
    ) -> None:
        self.name = f"{name} (partial)"
        self.root = root
        self.variants = (Variant(fs, "min"),)
        self.kinds = kinds
        self.subtype = subtype
        self.mixture = kinds[0]
        self.sums = {kinds[0]: kinds[1:]}

    def describe(self) -> dict[str, Any]:
        return {}

    def rates(self, row: Row) -> tuple[int, ...]:
        return (self.variants[0].fs,) * len(row.files)

    def samples(self, row: Row, frames: Sequence[int], variant: Variant) -> int:
        return frames[0] + abs(int(row.values[0]))

    def render(
        self, row: Row, frames: Sequence[int]
    ) -> Iterator[tuple[Variant, dict[str, np.ndarray]]]:
        dtype = "int16" if self.subtype == "PCM_16" else "float32"
        delay, noise_start, noise_samples = map(int, row.values)
        first, second = (read_audio(file, dtype=dtype) for file in row.files[:2])
        samples = len(first) + abs(delay)
        parts = [_shift(first, max(-delay, 0), samples), _shift(second, max(delay, 0), samples)]
        if len(row.files) == 3:
            noise = np.resize(read_audio(row.files[2], dtype=dtype), samples)
            noise[:noise_start] = 0
            noise[noise_start + noise_samples :] = 0
            parts.append(noise)
        if dtype == "int16":
            mixture, parts = _limit(parts)
        else:
            mixture = np.asarray(np.sum(parts, axis=0), dtype=np.float32)
        yield self.variants[0], dict(zip(self.kinds, (mixture, *parts), strict=True))


def _shift(signal: np.ndarray, delay: int, samples: int) -> np.ndarray:
    return np.pad(signal, (delay, samples - delay - len(signal)))


def _limit(parts: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """16-bit parts, lowered if their sum would exceed 0.9 of full scale, and the sum."""
    total = np.asarray(np.sum(parts, axis=0, dtype=np.int32))
    peak = int(np.abs(total).max(initial=0))
    if peak > _PEAK + len(parts):  # roundings of a mixture that was limited already
        parts = [np.rint(part * (_PEAK / peak)).astype(np.int16) for part in parts]
        total = np.asarray(np.sum(parts, axis=0, dtype=np.int32))
    return total.astype(np.int16), parts


# -- overlap ---------------------------------------------------------------------------------------


def draw_plan(entry: Entry, condition: Condition, seed: int) -> Plan:
    """What a mixture of a set becomes; depends on its signals and key, the set and ``seed``."""
    rng = np.random.default_rng([seed, *f"{condition.name}/{entry.utt}".encode()])
    signals = [read_audio(path, dtype="float32") for path in (entry.s1, entry.s2)]
    fs = soundfile.info(entry.s1).samplerate
    margin = 2 * block_length(fs)  # as when delayed, speech does not end where the signal does
    extents = [active_span(np.pad(signal, margin), fs) for signal in signals]
    ratio = float(rng.uniform(*condition.overlap))
    second_first = condition.either_first and bool(rng.integers(2))
    delay = 0
    if ratio < 1.0:
        leader, other = (extents[1], extents[0]) if second_first else extents
        wanted = round(ratio * min(end - start for start, end in extents))
        delay = leader[1] - wanted - other[0]  # below 0 it is the leader that has to wait
        block = block_length(fs)  # whole blocks, so that the detector sees the same speech
        delay = round(delay / block) * block
        delay = -delay if second_first else delay
    samples = len(signals[0]) + abs(delay)
    first = _shift(signals[0], max(-delay, 0), samples)
    second = _shift(signals[1], max(delay, 0), samples)
    noise_samples = round(float(rng.uniform(*condition.noise)) * samples)
    noise_start = int(rng.integers(0, samples - noise_samples + 1))
    overlap = overlap_of_spans(first, second, fs)
    return Plan(entry.utt, round(overlap, 4), delay, noise_start, noise_samples)


# -- sets ------------------------------------------------------------------------------------------


def plan_subset(
    corpus: Partial,
    condition: Condition,
    entries: Sequence[Entry],
    seed: int,
    problems: Problems,
    run: Run,
) -> tuple[Subset, dict[str, float]]:
    """The rows of a set, and the overlap of each by its key; unreadable ones are noted.

    The table ``<root>/metadata/<set>.csv`` keeps the plan, so that it is made once.
    """
    table = corpus.root / "metadata" / f"{condition.name}.csv"
    inputs = repr((condition, seed, [dataclasses.astuple(entry) for entry in entries]))
    digest = hashlib.sha256(inputs.encode()).hexdigest()[:16]
    plans = _read_plans(table, digest)
    if plans is None:
        plans = []
        task = functools.partial(_draw, condition=condition, seed=seed)
        results = run(task, entries, f"{condition.name}: finding speech")
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, Plan):
                plans.append(result)
            else:
                problems.add(*result)
                problems.concern(entry.utt, result[0])
        if not problems:
            _write_plans(table, digest, plans)
    entry_of = {entry.utt: entry for entry in entries}
    rows = [_row(entry_of[plan.name], plan) for plan in plans]
    return Subset(condition.name, condition.name, rows), {p.name: p.overlap for p in plans}


def _draw(entry: Entry, condition: Condition, seed: int) -> Plan | tuple[str, str]:
    """The plan, or the file that is bad and why."""
    try:
        return draw_plan(entry, condition, seed)
    except BadFile as error:
        return error.path, error.reason


def _row(entry: Entry, plan: Plan) -> Row:
    files = [path for path in (entry.s1, entry.s2, entry.noise) if path]
    values = (float(plan.delay), float(plan.noise_start), float(plan.noise_samples))
    return Row(entry.utt, entry.utt, entry.speakers, tuple(files), values)


def _read_plans(table: Path, digest: str) -> list[Plan] | None:
    """The plans of a table made of the same inputs, else None."""
    if not table.is_file():
        return None
    with open(table, encoding="utf-8", newline="") as stream:
        if stream.readline() != f"# {digest}\n":
            return None
        reader = csv.DictReader(stream)
        return [_plan(line) for line in reader]


def _plan(line: Mapping[str, str]) -> Plan:
    numbers = [int(line[name]) for name in ("delay", "noise_start", "noise_samples")]
    return Plan(line["name"], float(line["overlap"]), *numbers)


def _write_plans(table: Path, digest: str, plans: Sequence[Plan]) -> None:
    with atomic_write(table) as stream:
        stream.write(f"# {digest}\n")
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(Plan)])
        writer.writerows(dataclasses.astuple(plan) for plan in plans)
