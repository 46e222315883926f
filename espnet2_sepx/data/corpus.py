"""Building the sets of a corpus on disk: whole or not at all, once, on several cores.

A set is two folders, ``<audio_dir>/<set>`` with the audio and ``<out>/<set>`` with the tables, both
made under temporary names and renamed when complete. Each holds ``make_mini.json`` with a
hash of all that determines it; a set whose two hashes fit is left alone. The folders are locked
while a build runs, so a second one waits and then finds the sets finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from espnet2_sepx.data.kaldi import spk2utt_from_utt2spk, write_scp
from espnet2_sepx.data.metadata import DrySource, Mixture, write_table
from espnet2_sepx.data.mixing import MixJob, Readers, plan, render
from espnet2_sepx.data.recordings import check_header, read_recording
from espnet2_sepx.data.sources import cut, load_origin, render_source
from espnet2_sepx.data.workers import Run, locked, workers
from espnet2_sepx.errors import UserError
from espnet2_sepx.files import atomic_dir

FORMAT = 1  # raised whenever the same options give other files than before
_MARKER = "make_mini.json"
_LONGEST_NOISE_S = 600.0  # of a noise file, the rest is not used


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where the user's audio is; names in the tables are relative to these."""

    speech: Path | None = None
    noise: Path | None = None
    rir: Path | None = None


@dataclasses.dataclass
class SetPlan:
    """A set still to be made.

    Attributes:
        description: all that determines it; hashed.
        files: the user's audio that goes into it.
        origins: dry sources, grouped by the signal they are cut from.
        max_seconds: cut every origin anew, into pieces of at most this; None: as it says.
        draw: makes of the finished dry sources what to mix, to be drawn or lines of a table.
    """

    name: str
    fs: int
    description: dict[str, Any]
    files: list[Path]
    origins: list[list[DrySource]]
    max_seconds: float | None
    draw: Callable[[list[DrySource]], Sequence[MixJob | Mixture]]


def build_sets(
    plans: Sequence[SetPlan], out: Path, audio_dir: Path, folders: Folders, num_workers: int
) -> None:
    """Make the sets that are not there yet.

    All dry sources are made first: a bad recording, wherever it is, then stops the run before any
    set appears.
    """
    with locked(out, audio_dir), contextlib.ExitStack() as everything:
        pending = []
        for set_plan in plans:
            if _is_finished(set_plan, out, audio_dir):
                _say(f"{set_plan.name}: already made, nothing to do ({out / set_plan.name})")
            else:
                _refuse_foreign(out / set_plan.name, audio_dir / set_plan.name)
                pending.append(set_plan)
        if not pending:
            return
        files = [(path, set_plan.fs) for set_plan in pending for path in set_plan.files]
        for path, fs in tqdm(files, desc="checking files", mininterval=1, disable=not files):
            check_header(path, fs)
        run = everything.enter_context(workers(num_workers))
        builds = []
        for set_plan in pending:
            stack = everything.enter_context(contextlib.ExitStack())
            builder = _SetBuilder(set_plan, out, audio_dir, folders, stack)
            builder.make_sources(run)
            builds.append((builder, stack))
        for builder, stack in builds:
            builder.make_mixtures(run)
            _retire(out / builder.plan.name, audio_dir / builder.plan.name)
            stack.close()  # the set appears


class _SetBuilder:
    """One set on its way from a plan to files under temporary names."""

    def __init__(
        self,
        set_plan: SetPlan,
        out: Path,
        audio_dir: Path,
        folders: Folders,
        stack: contextlib.ExitStack,
    ) -> None:
        self.plan = set_plan
        self.folders = folders
        self.final_audio = audio_dir / set_plan.name
        # Entered in this order, so the tables appear last, when all they name is there.
        self.tables = stack.enter_context(atomic_dir(out / set_plan.name))
        self.audio = stack.enter_context(atomic_dir(self.final_audio))
        self.sources: list[DrySource] = []

    def make_sources(self, run: Run) -> None:
        task = functools.partial(
            _make_sources,
            audio=self.audio,
            speech_dir=self.folders.speech,
            fs=self.plan.fs,
            max_seconds=self.plan.max_seconds,
        )
        title = f"{self.plan.name}: dry sources"
        made = list(run(task, self.plan.origins, title))
        self.sources = [source for group in made for source in group]
        left_out = sum(not group for group in made)
        if left_out:
            _say(f"{self.plan.name}: left out {left_out} recording(s) with under 0.5 s of speech")

    def make_mixtures(self, run: Run) -> None:
        task = functools.partial(
            _make_mixture, audio=self.audio, folders=self.folders, fs=self.plan.fs
        )
        jobs = self.plan.draw(self.sources)
        self._write_tables(list(run(task, jobs, f"{self.plan.name}: mixtures")))

    def _write_tables(self, mixtures: list[Mixture]) -> None:
        def paths(kind: str, names: Iterable[str]) -> dict[str, str]:
            return {name: str(self.final_audio / kind / f"{name}.wav") for name in names}

        utts = [mixture.utt for mixture in mixtures]
        speaker_of = {source.source: source.speaker for source in self.sources}
        utt2spk = {m.utt: f"{speaker_of[m.s1.source]}_{speaker_of[m.s2.source]}" for m in mixtures}
        tables = {
            "wav.scp": paths("mix", utts),
            "spk1.scp": paths("s1", utts),
            "spk2.scp": paths("s2", utts),
            "utt2spk": utt2spk,
            "spk2utt": spk2utt_from_utt2spk(utt2spk),
            "utt2overlap": {m.utt: f"{m.overlap:.4f}" for m in mixtures},
            "source.scp": paths("source", speaker_of),
            "source2spk": speaker_of,
        }
        if mixtures[0].noise.file:
            tables["noise1.scp"] = paths("noise", utts)
        for name, table in tables.items():
            write_scp(self.tables / name, table)
        write_table(self.tables / "sources.csv", self.sources)
        write_table(self.tables / "metadata.csv", mixtures)
        marker = json.dumps({"hash": digest(self.plan.description), **self.plan.description})
        for folder in (self.tables, self.audio):
            (folder / _MARKER).write_text(marker + "\n", encoding="utf-8")


def digest(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


# -- tasks of the workers --------------------------------------------------------------------------


def _make_sources(
    origins: list[DrySource],
    audio: Path,
    speech_dir: Path | None,
    fs: int,
    max_seconds: float | None,
) -> list[DrySource]:
    """Write the dry files cut from one signal."""
    signal = load_origin(origins[0], speech_dir, fs)
    sources = origins if max_seconds is None else cut(origins[0], signal, fs, max_seconds)
    for source in sources:
        _write_wav(audio / "source" / f"{source.source}.wav", render_source(source, signal), fs)
    return sources


def _make_mixture(job: MixJob | Mixture, audio: Path, folders: Folders, fs: int) -> Mixture:
    read = _readers(audio, folders, fs)
    row = plan(job, read) if isinstance(job, MixJob) else job
    signals = render(row, read)
    for name, samples in signals._asdict().items():
        if samples is not None:
            _write_wav(audio / name / f"{row.utt}.wav", samples, fs)
    return row


@functools.lru_cache(maxsize=1)
def _readers(audio: Path, folders: Folders, fs: int) -> Readers:
    """Cached per process: the same few noises and responses, and twice each dry source."""

    def source(name: str) -> np.ndarray:
        return soundfile.read(str(audio / "source" / f"{name}.wav"))[0]

    def noise(name: str) -> np.ndarray:
        assert folders.noise is not None
        return read_recording(folders.noise / name, fs, _LONGEST_NOISE_S)

    def rir(name: str) -> np.ndarray:
        assert folders.rir is not None
        return read_recording(folders.rir / name, fs)

    return Readers(
        source=functools.lru_cache(maxsize=4)(source),
        noise=functools.lru_cache(maxsize=16)(noise),
        rir=functools.lru_cache(maxsize=64)(rir),
    )


def _write_wav(path: Path, samples: np.ndarray, fs: int) -> None:
    path.parent.mkdir(exist_ok=True)
    try:
        soundfile.write(str(path), samples, fs, subtype="PCM_16")
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"cannot write {path}: {error}; check the space on the disk") from error


# -- what is there already -------------------------------------------------------------------------


def _is_finished(set_plan: SetPlan, out: Path, audio_dir: Path) -> bool:
    wanted = digest(set_plan.description)
    for folder in (out / set_plan.name, audio_dir / set_plan.name):
        try:
            found = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if found.get("hash") != wanted:
            return False
    return True


def _refuse_foreign(*folders: Path) -> None:
    """Replace only what make_mini has made."""
    for folder in folders:
        if folder.exists() and not (folder / _MARKER).exists():
            raise UserError(
                f"{folder}: exists and was not made by make_mini; "
                f"move it away, or choose another --out or --audio_dir"
            )


def _retire(*folders: Path) -> None:
    """Remove an older set, under a name by which it is known as rubbish if we are killed."""
    for folder in folders:
        if folder.exists():
            rubbish = folder.with_name(f".{folder.name}.tmp0")
            os.replace(folder, rubbish)
            shutil.rmtree(rubbish)


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def group_by_origin(sources: Sequence[DrySource]) -> list[list[DrySource]]:
    """Neighbouring lines of ``sources.csv`` that are cut from the same signal."""

    def origin(source: DrySource) -> Any:
        return dataclasses.replace(source, source="", start=0, samples=0, gain=0.0)

    return [list(group) for _, group in itertools.groupby(sources, key=origin)]
