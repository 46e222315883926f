"""What generating a corpus takes: bytes on the disk, time, and whether there is room."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from espnet2_sepx.data.corpora.audio import read_header, wav_bytes, wav_size
from espnet2_sepx.data.corpora.base import Corpus, Made, Subset, partial_of
from espnet2_sepx.errors import UserError

_TIMED = 4  # mixtures rendered for the estimate of time


def _bytes(corpus: Corpus, made: Made) -> int:
    return sum(
        len(corpus.kinds) * wav_size(samples, corpus.subtype)
        for lengths in made.samples.values()
        for samples in lengths.values()
    )


def _bytes_there(corpus: Corpus, subset: Subset) -> int:
    """What an interrupted run has left of a subset."""
    total = 0
    for variant in corpus.variants:
        folder = partial_of(corpus.folder(variant, subset.name))
        for kind in corpus.kinds:
            if (folder / kind).is_dir():
                total += sum(entry.stat().st_size for entry in os.scandir(folder / kind))
    return total


def require_space(corpus: Corpus, subsets: Iterable[Made]) -> None:
    """Stop before the disk is full rather than then."""
    needed = sum(_bytes(corpus, made) - _bytes_there(corpus, made.subset) for made in subsets)
    free = _free(corpus.root)
    if needed > free:
        raise UserError(
            f"{corpus.root}: {needed / 1e9:.3f} GB are needed, {free / 1e9:.3f} GB free; "
            "make room, or choose another --audio_dir"
        )


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def report_estimate(corpus: Corpus, subsets: Sequence[Made], nj: int) -> None:
    """What generating would take, one line a subset, on standard output."""
    total = 0
    for made in subsets:
        size = _bytes(corpus, made)
        total += size
        for variant, lengths in made.samples.items():
            hours = sum(lengths.values()) / variant.fs / 3600
            print(
                f"{corpus.folder(variant, made.subset.name)}: {len(made.rows)} mixtures, "
                f"{hours:.2f} h, {len(made.rows) * len(corpus.kinds)} files"
            )
    count = sum(len(made.rows) for made in subsets)
    seconds = _seconds_per_row(corpus, subsets) * count / nj
    print(
        f"{corpus.name}: {total / 1e9:.3f} GB to write, {_free(corpus.root) / 1e9:.3f} GB free; "
        f"about {_duration(seconds)} with {nj} process(es). Nothing was written."
    )


def _seconds_per_row(corpus: Corpus, subsets: Sequence[Made]) -> float:
    rows = [row for made in subsets for row in made.rows]
    chosen = rows[:: max(1, len(rows) // _TIMED)][:_TIMED]
    start = time.perf_counter()
    for row in chosen:
        frames = [read_header(file).frames for file in row.files]
        for variant, signals in corpus.render(row, frames):
            for signal in signals.values():
                wav_bytes(signal, variant.fs)
    return (time.perf_counter() - start) / len(chosen)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    if seconds < 5400:
        return f"{math.ceil(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
