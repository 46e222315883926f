"""From the options of ``make_mini`` to plans of its three sets.

A plan names everything that determines a set, the user's files with their sizes and dates
included, so that its hash changes when, and only when, the set has to be made again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_sepx.data.corpus import FORMAT, Folders, SetPlan, group_by_origin
from espnet2_sepx.data.metadata import (
    DrySource,
    Mixture,
    RecordedSource,
    SpokenSource,
    read_table,
)
from espnet2_sepx.data.mixing import MixJob, MixOptions
from espnet2_sepx.data.recordings import SETS, find_files, find_speech
from espnet2_sepx.data.sources import draw_pairs, recorded_origins, spoken_origins
from espnet2_sepx.errors import UserError

# Generated speech: (speakers, utterances of each, mixtures). Many voices rather than many hours:
# what has to be learnt is to tell unseen voices apart.
_GENERATED = {"train": (180, 6, 500), "valid": (24, 3, 40), "test": (36, 3, 60)}
_TABLES = ("sources.csv", "metadata.csv")
# Of recordings, when no number is given.
_MOST_MIXTURES = {"train": 2000, "valid": 100, "test": 100}


@dataclasses.dataclass(frozen=True)
class MiniOptions:
    """What ``make_mini`` can be told; a count of None means as many as suit the material."""

    mix: MixOptions
    seed: int
    counts: dict[str, int | None]
    max_seconds: float

    def __post_init__(self) -> None:
        if self.mix.fs < 8000:
            raise ValueError(f"fs must be at least 8000 Hz, got {self.mix.fs}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.max_seconds < 1:
            raise ValueError(f"max_seconds must be at least 1, got {self.max_seconds}")
        for name, count in self.counts.items():
            if count is not None and count < 1:
                raise ValueError(f"num_{name} must be at least 1, got {count}")


def plan_sets(options: MiniOptions, folders: Folders, audio_dir: Path) -> list[SetPlan]:
    """Plans of train, valid and test.

    Raises:
        UserError: the user's audio is missing, or too little for three sets without a common
            speaker.
    """
    noises = _relative(folders.noise, "--noise_dir", options.seed)
    rirs = _relative(folders.rir, "--rir_dir", options.seed)
    if folders.speech is None:
        origins: dict[str, Sequence[DrySource]] = {name: _speak(name, options) for name in SETS}
    else:
        speakers = find_speech(folders.speech, options.seed)
        origins = {name: recorded_origins(speakers[name], folders.speech) for name in SETS}
    plans = []
    for name in SETS:
        count = options.counts[name]
        if count is None and folders.speech is None:
            count = _GENERATED[name][2]
        files = _files_of(origins[name], noises[name], rirs[name], folders)
        what = {
            "seed": options.seed,
            "max_seconds": options.max_seconds,
            "mixing": dataclasses.asdict(options.mix),
            "mixtures": count,
        }
        plans.append(
            SetPlan(
                name=name,
                fs=options.mix.fs,
                description=_describe(name, audio_dir, what, origins[name], files),
                files=files,
                origins=[[origin] for origin in origins[name]],
                max_seconds=options.max_seconds,
                draw=functools.partial(
                    _draw_jobs,
                    name=name,
                    count=count,
                    options=options,
                    noises=tuple(noises[name]),
                    rirs=tuple(rirs[name]),
                ),
            )
        )
    return plans


def plan_rebuild(tables: Path, folders: Folders, audio_dir: Path, fs: int | None) -> list[SetPlan]:
    """Plans that make again what ``<tables>/<set>/{sources,metadata}.csv`` describe.

    ``fs``, unless None, must be the rate the tables say.

    Raises:
        UserError: no table, tables that do not fit, or a folder of audio that they need is missing.
    """
    present = [name for name in SETS if (tables / name / "metadata.csv").is_file()]
    if not present:
        raise UserError(
            f"{tables}: no <set>/metadata.csv; give the data folder of a corpus by make_mini"
        )
    plans = []
    for name in present:
        sources, mixtures = _read_tables(tables / name, folders, fs)
        noises = {mixture.noise.file for mixture in mixtures}
        rirs = {part.rir for mixture in mixtures for part in (mixture.s1, mixture.s2)}
        files = _files_of(sources, noises, rirs, folders)
        texts = [(tables / name / table).read_text(encoding="utf-8") for table in _TABLES]
        plans.append(
            SetPlan(
                name=name,
                fs=mixtures[0].fs,
                description=_describe(name, audio_dir, {"tables": _sha(texts)}, sources, files),
                files=files,
                origins=group_by_origin(sources),
                max_seconds=None,
                draw=functools.partial(_as_in_table, mixtures=mixtures),
            )
        )
    return plans


def _read_tables(
    folder: Path, folders: Folders, fs: int | None
) -> tuple[list[DrySource], list[Mixture]]:
    """The two tables of a set, if they fit together, the folders given, and ``fs``."""
    sources_csv, mixtures_csv = (folder / table for table in _TABLES)
    sources = read_table(sources_csv, SpokenSource, RecordedSource)
    mixtures = read_table(mixtures_csv, Mixture)
    if not sources or not mixtures:
        raise UserError(f"{folder}: an empty table; restore {' and '.join(_TABLES)}")
    if fs not in (None, mixtures[0].fs):
        raise UserError(
            f"{mixtures_csv}: describes audio of {mixtures[0].fs} Hz; "
            f"remove --fs {fs}, or give --fs {mixtures[0].fs}"
        )
    known = {source.source for source in sources}
    for source in (part.source for mixture in mixtures for part in (mixture.s1, mixture.s2)):
        if source not in known:
            raise UserError(
                f"{mixtures_csv}: source {source!r} is not in {sources_csv}; "
                f"take both tables from one corpus"
            )
    needs = {
        "--speech_dir": (folders.speech, isinstance(sources[0], RecordedSource)),
        "--noise_dir": (folders.noise, bool(mixtures[0].noise.file)),
        "--rir_dir": (folders.rir, bool(mixtures[0].s1.rir)),
    }
    for option, (given, needed) in needs.items():
        if needed and given is None:
            raise UserError(f"{folder}: was made with {option}; give the same folder with {option}")
    return sources, mixtures


def _as_in_table(_sources: list[DrySource], mixtures: list[Mixture]) -> list[Mixture]:
    return mixtures


def _speak(name: str, options: MiniOptions) -> list[SpokenSource]:
    """Generated sources: as many speakers as usual, more utterances for more mixtures."""
    speakers, utterances, mixtures = _GENERATED[name]
    wanted = options.counts[name] or mixtures
    speakers = max(2, min(speakers, 2 * wanted))
    utterances = max(1, round(utterances * wanted / mixtures))
    return spoken_origins(name, speakers, utterances, options.seed)


def _draw_jobs(
    sources: list[DrySource],
    name: str,
    count: int | None,
    options: MiniOptions,
    noises: tuple[str, ...],
    rirs: tuple[str, ...],
) -> list[MixJob]:
    """Pairs of sources and the names of their mixtures."""
    if count is None:  # train: every source about twice; else every source about once
        usual = len(sources) if name == "train" else len(sources) // 2
        count = max(1, min(usual, _MOST_MIXTURES[name]))
    seed = (options.seed, *name.encode())
    pairs = draw_pairs(sources, count, np.random.default_rng(seed))
    if not pairs:
        raise UserError(
            f"{name}: fewer than two speakers with half a second of speech; add recordings"
        )
    if len(pairs) < count:
        print(f"{name}: only {len(pairs)} different pairs of sources exist", file=sys.stderr)
    return [
        MixJob(
            utt=f"{first.speaker}_{second.speaker}_{number:05d}",
            pair=(first, second),
            options=options.mix,
            seed=(*seed, number),
            noises=noises,
            rirs=rirs,
        )
        for number, (first, second) in enumerate(pairs)
    ]


def _relative(folder: Path | None, option: str, seed: int) -> dict[str, list[str]]:
    if folder is None:
        return {name: [] for name in SETS}
    return {
        name: [path.relative_to(folder).as_posix() for path in paths]
        for name, paths in find_files(folder, option, seed).items()
    }


def _files_of(
    sources: Sequence[DrySource], noises: Iterable[str], rirs: Iterable[str], folders: Folders
) -> list[Path]:
    """The user's files that a set is made of, each of them there."""
    speech = {source.file for source in sources if isinstance(source, RecordedSource)}
    material = ((folders.speech, speech), (folders.noise, noises), (folders.rir, rirs))
    files = [
        folder / name
        for folder, names in material
        if folder is not None
        for name in sorted(names)
        if name
    ]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: named in the tables but not there; give the folder it is in")
    return files


def _describe(
    name: str,
    audio_dir: Path,
    what: dict[str, Any],
    sources: Sequence[DrySource],
    files: Sequence[Path],
) -> dict[str, Any]:
    generated = isinstance(sources[0], SpokenSource)
    return {
        "format": FORMAT,
        "set": name,
        "audio": str(audio_dir / name),
        **what,
        "generator": _espeak_version() if generated else None,
        "files": _fingerprint(files),
    }


def _fingerprint(files: Iterable[Path]) -> str:
    """Changes with the list of files and with any file's size or date."""
    stats = ((path, path.stat()) for path in files)
    return _sha(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}\n" for path, stat in stats)


def _sha(texts: Iterable[str]) -> str:
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def _espeak_version() -> str:
    try:
        return f"espeakng-loader {version('espeakng-loader')}"
    except PackageNotFoundError:
        return ""  # synthesize says what to install
