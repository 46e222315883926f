"""Generating a corpus: checked first, in parallel, to be stopped and resumed at any moment.

A subset is built in ``.<subset>.partial`` beside its final place and renamed when all of it is
there and verified, so a folder without the dot is complete. In it every file appears whole; what
is there already is not made again. A marker ``made.json`` says what a finished subset was made of.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from espnet2_sepx.data.corpora.audio import (
    BadFile,
    read_header,
    wav_bytes,
    wav_size,
    write_whole,
)
from espnet2_sepx.data.corpora.base import Corpus, Made, Row, Subset, Variant, partial_of
from espnet2_sepx.data.corpora.estimate import report_estimate, require_space
from espnet2_sepx.data.corpora.problems import Problems
from espnet2_sepx.data.workers import Run, locked, workers
from espnet2_sepx.errors import UserError

FORMAT = 2  # raised whenever the same rows give other files than before
_MARKER, _PLAN = "made.json", "plan.json"
_VERIFIED = 5  # of how many mixtures the sum is checked, at least; else of every hundredth
_WORTH_WORKERS = 16  # mixtures; below, starting processes takes longer than the work
_WORTH_SHARING = 1000  # files to check


@dataclasses.dataclass(frozen=True)
class Options:
    """How to generate: processes, what to do with bad files, where to list them."""

    nj: int
    listing: Path
    skip_bad: bool = False
    dry_run: bool = False
    verify_all: bool = False


def generate(corpus: Corpus, subsets: Sequence[Subset], options: Options) -> list[Made]:
    """Make the subsets that are not there yet; with ``dry_run`` only say what that would take.

    Raises:
        UserError: bad material (unless ``skip_bad``), no room on the disk, a foreign folder.
    """
    with workers(_processes(options.nj, subsets)) as run:
        if options.dry_run:
            made, _ = _check(corpus, subsets, options, run)
            report_estimate(corpus, made, options.nj)
            return made
        corpus.root.mkdir(parents=True, exist_ok=True)
        with locked(corpus.root):
            return _generate(corpus, subsets, options, run)


def _processes(nj: int, subsets: Sequence[Subset]) -> int:
    return nj if sum(len(subset.rows) for subset in subsets) >= _WORTH_WORKERS else 1


def _generate(corpus: Corpus, subsets: Sequence[Subset], options: Options, run: Run) -> list[Made]:
    finished, pending = [], []
    for subset in subsets:
        made = _finished(corpus, subset, options.skip_bad)
        if made is None:
            pending.append(subset)
        else:
            _say(f"{corpus.name} {subset.name}: already made, nothing to do")
            finished.append(made)
    if not pending:
        return finished
    checked, frames = _check(corpus, pending, options, run)
    require_space(corpus, checked)
    for made in checked:
        _make(corpus, made, frames, options, run)
    order = [subset.name for subset in subsets]
    return sorted([*finished, *checked], key=lambda made: order.index(made.subset.name))


# -- the material ----------------------------------------------------------------------------------


def _check(
    corpus: Corpus, subsets: Sequence[Subset], options: Options, run: Run
) -> tuple[list[Made], dict[str, int]]:
    """Read the header of every file; rows without their files go, or stop the run."""
    rates: dict[str, int] = {}
    for subset in subsets:
        for row in subset.rows:
            rates.update(zip(row.files, corpus.rates(row), strict=True))
    with workers(1) as alone:  # reads few headers while the others are starting
        check = run if len(rates) > _WORTH_SHARING else alone
        found = list(check(_frames_of, list(rates.items()), f"{corpus.name}: checking files"))
    frames: dict[str, int] = {}
    problems = Problems()
    for file, result in zip(rates, found, strict=True):
        if isinstance(result, str):
            problems.add(file, result)
        else:
            frames[file] = result
    for subset in subsets:
        for row in subset.rows:
            for file in row.files:
                if file not in frames:
                    problems.concern(f"{subset.name}/{row.name}", file)
    if problems:
        total = sum(len(subset.rows) for subset in subsets)
        _say(problems.settle(corpus.name, total, options.listing, options.skip_bad))
    made = []
    for subset in subsets:
        rows = [row for row in subset.rows if all(file in frames for file in row.files)]
        if not rows:
            raise UserError(f"{corpus.name}: no mixture of {subset.name} is left; mend the files")
        samples = {
            variant: {row.name: corpus.samples(row, _frames(row, frames), variant) for row in rows}
            for variant in corpus.variants
        }
        made.append(Made(subset, rows, samples))
    return made, frames


def _frames_of(file_and_rate: tuple[str, int]) -> int | str:
    """Length of a good file, or what is wrong with it."""
    file, fs = file_and_rate
    try:
        header = read_header(file)
    except BadFile as error:
        return error.reason
    if header.fs != fs:
        return f"sampling rate is {header.fs} Hz, expected {fs}"
    return header.frames or "has no samples"


def _frames(row: Row, frames: dict[str, int]) -> list[int]:
    return [frames[file] for file in row.files]


# -- making a subset -------------------------------------------------------------------------------


def _make(corpus: Corpus, made: Made, frames: dict[str, int], options: Options, run: Run) -> None:
    """Render what is missing of a subset, verify it, and put it in its place."""
    subset = made.subset
    partial = {}
    for variant in corpus.variants:
        partial[variant] = _partial_folder(corpus, variant, subset)
        for kind in corpus.kinds:
            (partial[variant] / kind).mkdir(exist_ok=True)
    missing = _missing(corpus, made, partial)
    if len(missing) < len(made.rows):
        _say(f"{corpus.name} {subset.name}: {len(made.rows) - len(missing)} mixtures are there")
    jobs = [(row, _frames(row, frames)) for row in missing]
    task = functools.partial(_render, corpus=corpus, partial=partial)
    problems = Problems()
    for row, bad in zip(missing, run(task, jobs, f"{corpus.name} {subset.name}"), strict=True):
        if bad is not None:
            problems.add(*bad)
            problems.concern(f"{subset.name}/{row.name}", bad[0])
    if problems:
        total = len(made.rows)
        _say(problems.settle(corpus.name, total, options.listing, options.skip_bad))
        bad = problems.mixtures
        made.rows = [row for row in made.rows if f"{subset.name}/{row.name}" not in bad]
    _verify(corpus, made, partial, options, run)
    for variant in corpus.variants:
        marker = {
            **_description(corpus, variant, subset),
            "mixtures": len(made.rows),
            "left_out": sorted({r.name for r in subset.rows} - {r.name for r in made.rows}),
        }
        write_whole(partial[variant], _MARKER, (json.dumps(marker) + "\n").encode())
        os.replace(partial[variant], corpus.folder(variant, subset.name))


def _render(
    job: tuple[Row, list[int]], corpus: Corpus, partial: dict[Variant, Path]
) -> tuple[str, str] | None:
    """Write the files of a mixture; a file of the material that is bad is returned with reason."""
    row, frames = job
    try:
        for variant, signals in corpus.render(row, frames):
            for kind, signal in signals.items():
                write_whole(
                    partial[variant] / kind, f"{row.name}.wav", wav_bytes(signal, variant.fs)
                )
    except BadFile as error:
        return error.path, error.reason
    return None


def _missing(corpus: Corpus, made: Made, partial: dict[Variant, Path]) -> list[Row]:
    """Rows of which a file is not there, or not of the right size."""
    missing = set()
    for variant, folder in partial.items():
        lengths = made.samples[variant]
        for kind in corpus.kinds:
            sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder / kind)}
            for row in made.rows:
                wanted = wav_size(lengths[row.name], corpus.subtype)
                if sizes.get(f"{row.name}.wav") != wanted:
                    missing.add(row.name)
    return [row for row in made.rows if row.name in missing]


def _partial_folder(corpus: Corpus, variant: Variant, subset: Subset) -> Path:
    """The folder a subset is built in; what another description left there goes."""
    final = corpus.folder(variant, subset.name)
    folder = partial_of(final)
    plan = folder / _PLAN
    wanted = json.dumps(_description(corpus, variant, subset))
    if final.exists() and not folder.exists():  # made before with mixtures left out
        os.replace(final, folder)
    if plan.is_file() and plan.read_text(encoding="utf-8") == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_whole(folder, _PLAN, wanted.encode())
    return folder


def _description(corpus: Corpus, variant: Variant, subset: Subset) -> dict[str, Any]:
    rows = hashlib.sha256()
    for row in subset.rows:
        rows.update(repr((row.name, row.files, row.values)).encode())
    return {
        "format": FORMAT,
        "corpus": corpus.name,
        "variant": [variant.fs, variant.mode],
        "kinds": list(corpus.kinds),
        **corpus.describe(),
        "rows": rows.hexdigest()[:16],
    }


def _finished(corpus: Corpus, subset: Subset, skip_bad: bool) -> Made | None:
    """The subset, if all its variants are complete; lengths are read from the files.

    Raises:
        UserError: something else is in its place.
    """
    left_out: set[str] = set()
    for variant in corpus.variants:
        folder = corpus.folder(variant, subset.name)
        if not folder.exists():
            return None
        try:
            marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder}: exists and was not made by this program; move it away, or choose "
                "another --audio_dir; if it is the corpus you want, give its root as existing tree"
            ) from error
        wanted = _description(corpus, variant, subset)
        if any(marker.get(key) != value for key, value in wanted.items()):
            raise UserError(
                f"{folder}: was made with other options or tables; delete it, or choose another "
                "--audio_dir"
            )
        left_out |= set(marker["left_out"])
    if left_out and not skip_bad:
        return None  # perhaps the files have been mended
    rows = [row for row in subset.rows if row.name not in left_out]
    return Made(subset, rows, {})


# -- verification ----------------------------------------------------------------------------------


def _verify(
    corpus: Corpus, made: Made, partial: dict[Variant, Path], options: Options, run: Run
) -> None:
    """Number and length of all files, and that mixtures are the sum of their signals.

    Raises:
        UserError: something is not as it must be.
    """
    wanted = {f"{row.name}.wav" for row in made.rows}
    for folder in partial.values():
        for kind in corpus.kinds:
            for entry in os.scandir(folder / kind):
                if entry.name not in wanted:  # of a killed run, or of a row left out now
                    os.unlink(entry.path)
    for row in _missing(corpus, made, partial):
        raise UserError(
            f"{corpus.name}: files of {row.name} are missing or of wrong length after they were "
            "written; run the same command again"
        )
    step = 1 if options.verify_all else min(100, max(1, len(made.rows) // _VERIFIED))
    task = functools.partial(_check_sum, corpus=corpus, partial=partial)
    title = f"{corpus.name} {made.subset.name}: verifying"
    for message in run(task, made.rows[::step], title):
        if message:
            raise UserError(message)


def _check_sum(row: Row, corpus: Corpus, partial: dict[Variant, Path]) -> str:
    """What is wrong with the files of a mixture, or ''."""
    exact = corpus.subtype == "PCM_16"
    for folder in partial.values():
        files = {kind: str(folder / kind / f"{row.name}.wav") for kind in corpus.kinds}
        dtype = "int16" if exact else "float64"
        signals = {kind: soundfile.read(file, dtype=dtype)[0] for kind, file in files.items()}
        for kind, parts in corpus.sums.items():
            difference = np.sum([signals[part] for part in parts], axis=0) - signals[kind]
            if exact:  # each file is rounded, and clipped, on its own
                for name in (kind, *parts):
                    difference[(signals[name] == -(2**15)) | (signals[name] == 2**15 - 1)] = 0
            if np.abs(difference).max(initial=0) > (len(parts) if exact else 1e-6):
                return (
                    f"{files[kind]}: is not the sum of {', '.join(parts)}; delete it and run again"
                )
    return ""


def _say(message: str) -> None:
    print(message, file=sys.stderr)
