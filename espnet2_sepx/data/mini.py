"""From the options of ``make_mini`` to plans of its three sets.

A plan names everything that determines a set, the user's files with their sizes and dates
included, so that its hash changes when, and only when, the set has to be made again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_sepx.data.corpus import FORMAT, Folders, Job, SetPlan, group_by_origin
from espnet2_sepx.data.metadata import (
    DrySource,
    Mixture,
    RecordedSource,
    SpokenSource,
    read_table,
)
from espnet2_sepx.data.mixing import MixOptions
from espnet2_sepx.data.recordings import SETS, find_files, find_speech
from espnet2_sepx.data.sources import draw_pairs, recorded_origins, spoken_origins
from espnet2_sepx.errors import UserError

# Generated speech: (speakers, utterances of each, mixtures). Many voices rather than many hours:
# what has to be learnt is to tell unseen voices apart.
_GENERATED = {"train": (180, 6, 500), "valid": (24, 3, 40), "test": (36, 3, 60)}
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
    """Plans of train, valid and test."""
    seed = options.seed
    noises = _relative(folders.noise, "--noise_dir", seed)
    rirs = _relative(folders.rir, "--rir_dir", seed)
    speech = None if folders.speech is None else find_speech(folders.speech, seed)
    plans = []
    for name in SETS:
        origins: Sequence[DrySource]
        if speech is None:
            origins = _speak(name, options)
            default = _GENERATED[name][2]
            material = _espeak_version()
        else:
            assert folders.speech is not None
            origins = recorded_origins(speech[name], folders.speech)
            default = None
            material = ""
        files = [path for paths in (speech or {}).get(name, {}).values() for path in paths]
        files += [folders.noise / file for file in noises[name]] if folders.noise else []
        files += [folders.rir / file for file in rirs[name]] if folders.rir else []
        description = {
            "format": FORMAT,
            "set": name,
            "audio": str(audio_dir / name),
            "options": dataclasses.asdict(dataclasses.replace(options, counts={})),
            "mixtures": options.counts[name] or default,
            "generator": material,
            "files": _fingerprint(files),
        }
        draw = functools.partial(
            _draw_jobs,
            name=name,
            count=options.counts[name] or default,
            options=options,
            noises=tuple(noises[name]),
            rirs=tuple(rirs[name]),
        )
        plans.append(
            SetPlan(
                name=name,
                fs=options.mix.fs,
                origins=[[origin] for origin in origins],
                description=description,
                files=files,
                draw=draw,
                max_seconds=options.max_seconds,
            )
        )
    return plans


def plan_rebuild(tables: Path, folders: Folders, audio_dir: Path) -> list[SetPlan]:
    """Plans that make again what ``<tables>/<set>/{sources,metadata}.csv`` describe.

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
        sources_csv = tables / name / "sources.csv"
        mixtures_csv = tables / name / "metadata.csv"
        sources = read_table(sources_csv, SpokenSource, RecordedSource)
        mixtures = read_table(mixtures_csv, Mixture)
        if not sources or not mixtures:
            raise UserError(f"{tables / name}: an empty table; restore sources.csv, metadata.csv")
        known = {source.source for source in sources}
        for mixture in mixtures:
            for source in (mixture.s1.source, mixture.s2.source):
                if source not in known:
                    raise UserError(
                        f"{mixtures_csv}: source {source!r} is not in {sources_csv}; "
                        f"take both tables from one corpus"
                    )
        recorded = isinstance(sources[0], RecordedSource)
        _require("--speech_dir", folders.speech, sources_csv, recorded)
        _require("--noise_dir", folders.noise, mixtures_csv, bool(mixtures[0].noise.file))
        _require("--rir_dir", folders.rir, mixtures_csv, bool(mixtures[0].s1.rir))
        files = _files_of(sources, mixtures, folders)
        description = {
            "format": FORMAT,
            "set": name,
            "audio": str(audio_dir / name),
            "tables": _sha(p.read_text(encoding="utf-8") for p in (sources_csv, mixtures_csv)),
            "generator": "" if recorded else _espeak_version(),
            "files": _fingerprint(files),
        }
        plans.append(
            SetPlan(
                name=name,
                fs=mixtures[0].fs,
                origins=group_by_origin(sources),
                description=description,
                files=files,
                mixtures=mixtures,
            )
        )
    return plans


def _speak(name: str, options: MiniOptions) -> Sequence[DrySource]:
    """Generated sources: as many speakers as usual, more utterances for more mixtures."""
    speakers, utterances, mixtures = _GENERATED[name]
    wanted = options.counts[name] or mixtures
    speakers = max(2, min(speakers, 2 * wanted))
    utterances = max(1, round(utterances * min(1.0, wanted / mixtures)))
    if wanted > mixtures:
        utterances = round(_GENERATED[name][1] * wanted / mixtures)
    return spoken_origins(name, speakers, utterances, options.seed)


def _draw_jobs(
    sources: list[DrySource],
    name: str,
    count: int | None,
    options: MiniOptions,
    noises: tuple[str, ...],
    rirs: tuple[str, ...],
) -> list[Job]:
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
    return [
        Job(
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


def _require(option: str, folder: Path | None, table: Path, needed: bool) -> None:
    if needed and folder is None:
        raise UserError(f"{table}: was made with {option}; give the same folder with {option}")


def _files_of(sources: Sequence[Any], mixtures: Sequence[Mixture], folders: Folders) -> list[Path]:
    names = {(folders.speech, getattr(source, "file", "")) for source in sources} | {
        (folders.noise, m.noise.file) for m in mixtures
    }
    names |= {(folders.rir, part.rir) for m in mixtures for part in (m.s1, m.s2)}
    files = sorted(folder / name for folder, name in names if folder is not None and name)
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: named in the tables but not there; give the folder it is in")
    return files


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
