"""From mixtures on disk to a data directory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from espnet2_sepx.data.corpora.audio import wav_samples
from espnet2_sepx.data.corpora.base import Corpus, Made
from espnet2_sepx.data.kaldi import spk2utt_from_utt2spk, write_scp
from espnet2_sepx.files import atomic_dir, atomic_write


@dataclasses.dataclass(frozen=True)
class Entry:
    """A mixture: its key, its speakers, and where its signals are; ``noise`` may be ''.

    ``overlap`` is the share of speech that overlaps, where it is known.
    """

    utt: str
    speakers: tuple[str, str]
    mix: str
    s1: str
    s2: str
    noise: str = ""
    overlap: float | None = None


def entries_of(corpus: Corpus, made: Made) -> list[Entry]:
    """Entries of a generated subset, in its first variant."""
    folder = corpus.folder(corpus.variants[0], made.subset.name)
    has_noise = "noise" in corpus.sums[corpus.mixture]

    def path(kind: str, name: str) -> str:
        return str(folder / kind / f"{name}.wav")

    return [
        Entry(
            row.utt,
            row.speakers,
            path(corpus.mixture, row.name),
            path("s1", row.name),
            path("s2", row.name),
            path("noise", row.name) if has_noise else "",
        )
        for row in made.rows
    ]


def write_data_directory(out: Path, entries: Sequence[Entry], with_sources: bool) -> None:
    """The tables of a set, whole or not at all.

    Args:
        out: the data directory.
        entries: its mixtures, at least one.
        with_sources: offer the references as sources for dynamic mixing.
    """
    utt2spk = {entry.utt: "_".join(entry.speakers) for entry in entries}
    tables: dict[str, dict[str, str]] = {
        "wav.scp": {entry.utt: entry.mix for entry in entries},
        "spk1.scp": {entry.utt: entry.s1 for entry in entries},
        "spk2.scp": {entry.utt: entry.s2 for entry in entries},
        "utt2spk": utt2spk,
        "spk2utt": spk2utt_from_utt2spk(utt2spk),
    }
    if entries[0].noise:
        tables["noise1.scp"] = {entry.utt: entry.noise for entry in entries}
    if entries[0].overlap is not None:
        tables["utt2overlap"] = {entry.utt: f"{entry.overlap:.4f}" for entry in entries}
    if with_sources:
        tables["source.scp"], tables["source2spk"] = _sources(entries)
    with atomic_dir(out) as folder:
        for name, table in tables.items():
            write_scp(folder / name, table)


def _sources(entries: Iterable[Entry]) -> tuple[dict[str, str], dict[str, str]]:
    paths, speakers = {}, {}
    for entry in entries:
        for number, path in enumerate((entry.s1, entry.s2)):
            paths[f"{entry.utt}-s{number + 1}"] = path
            speakers[f"{entry.utt}-s{number + 1}"] = entry.speakers[number]
    return paths, speakers


def write_mixture_tables(corpus: Corpus, made: Made) -> None:
    """LibriMix's ``metadata/mixture_<subset>_<kind>.csv``, which other toolkits read."""
    for variant in corpus.variants:
        folder = corpus.folder(variant, made.subset.name)
        for kind, parts in corpus.sums.items():
            columns = {"s1": "source_1_path", "s2": "source_2_path", "noise": "noise_path"}
            header = ["mixture_ID", "mixture_path", *(columns[part] for part in parts), "length"]
            table = folder.parent / "metadata" / f"mixture_{made.subset.name}_{kind}.csv"
            table.parent.mkdir(exist_ok=True)
            with atomic_write(table) as stream:
                stream.write(",".join(header) + "\n")
                for row in made.rows:
                    paths = [f"{folder}/{part}/{row.name}.wav" for part in (kind, *parts)]
                    length = wav_samples(os.stat(paths[0]).st_size, corpus.subtype)
                    stream.write(",".join([row.name, *paths, str(length)]) + "\n")
