"""Building the sets of a corpus on disk: whole or not at all, once, on several cores.

A set is two folders, ``<audio_dir>/<set>`` with the audio and ``<out>/<set>`` with the tables, both
made under temporary names and renamed when complete. Each holds ``make_mini.json`` with a
hash of all that determines it; a set whose two hashes fit is left alone. The folders are locked
while a build runs, so a second one waits and then finds the sets finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from espnet2_sepx.data.kaldi import write_scp
from espnet2_sepx.data.metadata import DrySource, Mixture, write_table
from espnet2_sepx.data.mixing import MixOptions, Readers, plan, render
from espnet2_sepx.data.recordings import check_header, read_recording
from espnet2_sepx.data.sources import cut, load_origin, render_source
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

    ``files`` is the user's audio that goes into it.
    ``origins`` are grouped by the signal they are cut from. With ``mixtures`` None, the origins
    are yet to be cut and ``draw`` makes the mixtures; otherwise both are lines of finished tables.
    """

    name: str
    fs: int
    origins: list[list[DrySource]]
    description: dict[str, Any]
    files: list[Path]
    mixtures: list[Mixture] | None = None
    draw: Callable[[list[DrySource]], list[Job]] | None = None
    max_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Job:
    """A mixture to be drawn; arguments of ``mixing.plan``."""

    utt: str
    pair: tuple[DrySource, DrySource]
    options: MixOptions
    seed: tuple[int, ...]
    noises: tuple[str, ...]
    rirs: tuple[str, ...]


def build_sets(
    plans: Sequence[SetPlan], out: Path, audio_dir: Path, folders: Folders, num_workers: int
) -> None:
    """Make the sets that are not there yet.

    All dry sources are made first: a bad recording, wherever it is, then stops the run before any
    set appears.
    """
    with _locked(out, audio_dir), contextlib.ExitStack() as everything:
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
        run = everything.enter_context(_workers(num_workers))
        builds = []
        for set_plan in pending:
            stack = everything.enter_context(contextlib.ExitStack())
            builder = _SetBuilder(set_plan, out, audio_dir, folders, stack)
            builder.make_sources(run)
            builds.append((builder, stack))
        for builder, stack in builds:
            builder.make_mixtures(run)
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
        (self.audio / "source").mkdir()
        task = functools.partial(
            _make_sources,
            audio=self.audio,
            speech_dir=self.folders.speech,
            fs=self.plan.fs,
            max_seconds=None if self.plan.mixtures is not None else self.plan.max_seconds,
        )
        title = f"{self.plan.name}: dry sources"
        made = list(run(task, self.plan.origins, title))
        self.sources = [source for group in made for source in group]
        left_out = sum(not group for group in made)
        if left_out:
            _say(f"{self.plan.name}: left out {left_out} recording(s) with under 0.5 s of speech")

    def make_mixtures(self, run: Run) -> None:
        for name in ("mix", "s1", "s2", "noise"):
            (self.audio / name).mkdir()
        jobs: list[Any]
        if self.plan.mixtures is not None:
            jobs = list(self.plan.mixtures)
        else:
            assert self.plan.draw is not None
            jobs = list(self.plan.draw(self.sources))
        task = functools.partial(
            _make_mixture, audio=self.audio, folders=self.folders, fs=self.plan.fs
        )
        mixtures = list(run(task, jobs, f"{self.plan.name}: mixtures"))
        if not mixtures[0].noise.file:
            (self.audio / "noise").rmdir()
        self._write_tables(mixtures)

    def _write_tables(self, mixtures: list[Mixture]) -> None:
        def paths(kind: str, names: Iterable[str]) -> dict[str, str]:
            return {name: str(self.final_audio / kind / f"{name}.wav") for name in names}

        utts = [mixture.utt for mixture in mixtures]
        speaker_of = {source.source: source.speaker for source in self.sources}
        utt2spk = {m.utt: f"{speaker_of[m.s1.source]}_{speaker_of[m.s2.source]}" for m in mixtures}
        spk2utt: dict[str, list[str]] = {}
        for utt in sorted(utts, key=str.encode):
            spk2utt.setdefault(utt2spk[utt], []).append(utt)
        tables = {
            "wav.scp": paths("mix", utts),
            "spk1.scp": paths("s1", utts),
            "spk2.scp": paths("s2", utts),
            "utt2spk": utt2spk,
            "spk2utt": {speaker: " ".join(names) for speaker, names in spk2utt.items()},
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
    """Write the dry files cut from one signal; ``max_seconds`` None means they are cut already."""
    signal = load_origin(origins[0], speech_dir, fs)
    sources = origins if max_seconds is None else cut(origins[0], signal, fs, max_seconds)
    for source in sources:
        _write_wav(audio / "source" / f"{source.source}.wav", render_source(source, signal), fs)
    return sources


def _make_mixture(job: Job | Mixture, audio: Path, folders: Folders, fs: int) -> Mixture:
    read = _readers(audio, folders, fs)
    if isinstance(job, Job):
        row = plan(job.utt, job.pair, job.options, job.seed, read, job.noises, job.rirs)
    else:
        row = job
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
    try:
        soundfile.write(str(path), samples, fs, subtype="PCM_16")
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"cannot write {path}: {error}; check the space on the disk") from error


# -- processes, locks, leftovers -------------------------------------------------------------------

Run = Callable[[Callable[[Any], Any], Sequence[Any], str], Iterator[Any]]


@contextlib.contextmanager
def _workers(count: int) -> Iterator[Run]:
    """Yield ``run(task, items, title)``: results in order, with a progress bar.

    Processes are spawned, since a forked child inherits whatever threads and libraries hold.
    """
    if count == 1:
        yield lambda task, items, title: map(task, tqdm(items, desc=title, mininterval=1))
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)

    def run(task: Callable[[Any], Any], items: Sequence[Any], title: str) -> Iterator[Any]:
        results = executor.map(task, items, chunksize=8)
        return iter(tqdm(results, total=len(items), desc=title, mininterval=1))

    try:
        yield run
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; try again with --nj 1"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed would otherwise wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _locked(*folders: Path) -> Iterator[None]:
    """Create and lock folders, remove what a killed run left in them, and them if left empty."""
    with contextlib.ExitStack() as stack:
        unique = sorted(set(folders))
        for folder in unique:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                handle = os.open(folder, os.O_RDONLY)
            except OSError as error:
                raise UserError(
                    f"cannot write {folder}: {error.strerror}; choose a folder you may write to"
                ) from error
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                _say(f"waiting for another make_mini that works in {folder}")
                fcntl.flock(handle, fcntl.LOCK_EX)
        for folder in unique:
            for path in folder.iterdir():
                if re.fullmatch(r"\.(train|valid|test)\.tmp\d+", path.name):
                    shutil.rmtree(path, ignore_errors=True)
        try:
            yield
        finally:
            for folder in unique:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only if nothing was made in it


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


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def group_by_origin(sources: Sequence[DrySource]) -> list[list[DrySource]]:
    """Neighbouring lines of ``sources.csv`` that are cut from the same signal."""

    def origin(source: DrySource) -> Any:
        return dataclasses.replace(source, source="", start=0, samples=0, gain=0.0)

    return [list(group) for _, group in itertools.groupby(sources, key=origin)]
