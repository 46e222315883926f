"""A data directory for separation: reading it, and finding what is wrong with it.

    wav.scp                     mixtures
    spk1.scp spk2.scp [...]     references of the same utterances, one table per speaker
    noise1.scp [...]            noise in the mixtures, where there is any
    utt2spk spk2utt             speakers
    utt2overlap utt2category    and other tables utt2*, text*, of the same utterances; optional
    source.scp source2spk       clean single-speaker files for dynamic mixing; optional

Audio paths are absolute; all tables are sorted as by ``LC_ALL=C sort``.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from espnet2_sepx.data.kaldi import c_order, read_scp, spk2utt_from_utt2spk
from espnet2_sepx.errors import UserError

_REQUIRED = ("wav.scp", "spk1.scp", "spk2.scp", "utt2spk", "spk2utt")
_SIGNAL = re.compile(r"^(wav|(spk|noise)[1-9]\d*)\.scp$")
_UTTERANCE_TABLE = re.compile(r"^(utt2\w+|text\w*)$")
_DERIVED = ("utt2num_samples",)  # written by formatting, not taken over


@dataclass(frozen=True)
class DataDirectory:
    """Tables of a data directory, each ``key -> value``.

    Attributes:
        path: the directory.
        signals: audio by name of the table: ``wav.scp`` first, then ``noise1.scp``, ``spk1.scp``,
            ...; all of the same keys.
        tables: what else is known about utterances: ``utt2spk``, ``utt2overlap``, ...
        spk2utt: the reverse of ``utt2spk``.
        sources: ``source.scp``, empty if there is none.
        source2spk: their speakers.
    """

    path: Path
    signals: dict[str, dict[str, str]]
    tables: dict[str, dict[str, str]]
    spk2utt: dict[str, str]
    sources: dict[str, str]
    source2spk: dict[str, str]


def read_data_directory(path: str | Path) -> DataDirectory:
    """Read all tables; their agreement is for ``find_problems`` to check.

    Raises:
        UserError: the directory or a required table is missing, a table is malformed.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such data directory; prepare it first (stage 1 of the recipe)")
    for name in _REQUIRED:
        if not (path / name).is_file():
            raise UserError(
                f"{path / name}: is missing; a data directory needs {', '.join(_REQUIRED)}; "
                "prepare it again (stage 1 of the recipe)"
            )
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    names.sort(key=lambda name: name != "wav.scp")  # the mixture first

    def optional(name: str) -> dict[str, str]:
        return read_scp(path / name) if name in names else {}

    return DataDirectory(
        path,
        signals={name: read_scp(path / name) for name in names if _SIGNAL.match(name)},
        tables={
            name: read_scp(path / name)
            for name in names
            if _UTTERANCE_TABLE.match(name) and name not in _DERIVED
        },
        spk2utt=read_scp(path / "spk2utt"),
        sources=optional("source.scp"),
        source2spk=optional("source2spk"),
    )


def find_problems(data: DataDirectory, check_audio: bool = False) -> Iterator[str]:
    """One line for each thing that is wrong, with file and remedy.

    Args:
        data: what to check.
        check_audio: read the headers too: mono, one rate, mixture and references equally long.
    """
    if not data.signals["wav.scp"]:
        yield f"{data.path / 'wav.scp'}: has no utterance; prepare the data again"
        return
    yield from _order_problems(data)
    yield from _key_problems(data)
    yield from _value_problems(data)
    paths_are_good = True
    for problem in _path_problems(data):
        paths_are_good = False
        yield problem
    if check_audio and paths_are_good:
        yield from _audio_problems(data)


def _all_tables(data: DataDirectory) -> dict[str, dict[str, str]]:
    named = {**data.signals, **data.tables, "spk2utt": data.spk2utt}
    optional = {"source.scp": data.sources, "source2spk": data.source2spk}
    return named | {name: table for name, table in optional.items() if table}


def _order_problems(data: DataDirectory) -> Iterator[str]:
    for name, table in _all_tables(data).items():
        keys = [c_order(key) for key in table]
        for before, after in itertools.pairwise(keys):
            if before > after:
                yield (
                    f"{data.path / name}: is not sorted: {after.decode()!r} follows "
                    f"{before.decode()!r}; sort it with LC_ALL=C sort"
                )
                break


def _key_problems(data: DataDirectory) -> Iterator[str]:
    utterances = data.signals["wav.scp"]
    for name, table in {**data.signals, **data.tables}.items():
        yield from _difference(data.path, name, table, "wav.scp", utterances)
    if data.sources or data.source2spk:
        yield from _difference(data.path, "source2spk", data.source2spk, "source.scp", data.sources)
    for name, keys in (("wav.scp", utterances), ("source.scp", data.sources)):
        for key in keys:
            if "/" in key:
                yield f"{data.path / name}: key {key!r} has a slash; it must serve as a file name"
                break
    if spk2utt_from_utt2spk(data.tables["utt2spk"]) != {
        speaker: " ".join(names.split()) for speaker, names in data.spk2utt.items()
    }:
        yield f"{data.path / 'spk2utt'}: does not agree with utt2spk; make it again from that"


def _difference(
    path: Path, name: str, table: dict[str, str], other: str, expected: dict[str, str]
) -> Iterator[str]:
    missing = [key for key in expected if key not in table]
    surplus = [key for key in table if key not in expected]
    if missing:
        yield (
            f"{path / name}: lacks {len(missing)} of the keys of {other}, first {missing[0]!r}; "
            "prepare the data again"
        )
    if surplus:
        yield (
            f"{path / name}: has {len(surplus)} key(s) that are not in {other}, "
            f"first {surplus[0]!r}; prepare the data again"
        )


def _value_problems(data: DataDirectory) -> Iterator[str]:
    for utterance, value in data.tables.get("utt2overlap", {}).items():
        try:
            valid = 0.0 <= float(value) <= 1.0
        except ValueError:
            valid = False
        if not valid:
            yield (
                f"{data.path / 'utt2overlap'}: {utterance} has {value!r}, expected a ratio from 0 "
                "to 1; correct it"
            )


def _path_problems(data: DataDirectory) -> Iterator[str]:
    for name, table in {**data.signals, "source.scp": data.sources}.items():
        for key, value in table.items():
            if not os.path.isabs(value):
                yield f"{data.path / name}: {key}: path {value!r} is not absolute; write it in full"
            elif not os.path.isfile(value):
                yield (
                    f"{data.path / name}: {key}: there is no file {value}; restore it, or prepare "
                    "the data again"
                )


def _audio_problems(data: DataDirectory) -> Iterator[str]:
    import soundfile

    from espnet2_sepx.data.recordings import check_header

    first_rate: tuple[int, str] | None = None
    for utterance in data.signals["wav.scp"]:
        mixture_frames = 0
        for table in data.signals.values():
            try:
                check_header(Path(table[utterance]), fs=0)
            except UserError as error:
                yield str(error)
                continue
            info = soundfile.info(table[utterance])
            first_rate = first_rate or (info.samplerate, table[utterance])
            if info.samplerate != first_rate[0]:
                yield (
                    f"{table[utterance]}: sampling rate is {info.samplerate} Hz, but "
                    f"{first_rate[1]} has {first_rate[0]} Hz; use one rate"
                )
            mixture_frames = mixture_frames or info.frames
            if info.frames != mixture_frames:
                yield unequal_lengths(
                    table[utterance],
                    info.frames,
                    data.signals["wav.scp"][utterance],
                    mixture_frames,
                )


def unequal_lengths(path: str, frames: int, mixture: str, mixture_frames: int) -> str:
    """The message for a reference that does not fit its mixture."""
    return (
        f"{path}: has {frames} samples, but the mixture {mixture} has {mixture_frames}; make them "
        "equally long, or remove the utterance from all tables"
    )
