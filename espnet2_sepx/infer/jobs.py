"""What to separate and where the results go: files, folders and scp lists become jobs.

A file ``talk.wav`` becomes ``OUT/talk_spk1.wav``, ...; files of a folder keep their place below it;
an scp list is laid out as ESPnet does, ``OUT/wavs/1/<key>.wav`` and ``OUT/spk1.scp``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet2_sepx.data.kaldi import read_scp
from espnet2_sepx.errors import UserError

_SUFFIXES = (
    *("aif", "aifc", "aiff", "au", "avr", "caf", "flac", "gsm", "htk", "iff", "mat", "mp2", "mp3"),
    *("nist", "oga", "ogg", "opus", "paf", "pvf", "rf64", "sd2", "sf", "snd", "sph", "svx", "voc"),
    *("w64", "wav", "wave", "wv", "xi"),
)
AUDIO_SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES)
"""Of the files that libsndfile may read; in a folder others are passed over."""


@dataclass(frozen=True)
class Job:
    """One recording.

    Attributes:
        key: names it in the summary; unique.
        source: the audio file.
        pattern: path of its outputs, ``{n}`` for the number of the speaker.
        listed: from an scp list.
    """

    key: str
    source: Path
    pattern: str
    listed: bool = False

    def outputs(self, speakers: int) -> list[Path]:
        """One file per speaker."""
        return [Path(self.pattern.replace("{n}", str(n))) for n in range(1, speakers + 1)]

    @property
    def rttm(self) -> Path:
        """Who speaks when."""
        pattern = self.pattern.replace("_spk{n}.wav", ".rttm").replace("wavs/{n}", "rttm")
        return Path(pattern.removesuffix(".wav").removesuffix(".rttm") + ".rttm")


def find_jobs(inputs: Sequence[str], output: Path) -> tuple[list[Job], dict[str, str]]:
    """Everything to do, in a settled order, and what is wrong with inputs that hold nothing.

    Returns:
        jobs, and failures (input -> message).

    Raises:
        UserError: two recordings of one key, or an output that would replace an input.
    """
    jobs: list[Job] = []
    failures: dict[str, str] = {}
    for name in inputs:
        path = Path(name)
        try:
            if path.is_dir():
                jobs += _folder_jobs(path, output)
            elif path.suffix == ".scp":
                jobs += _scp_jobs(path, output)
            elif path.exists():
                jobs.append(_job(path.stem, path, output))
            else:
                failures[name] = f"{name}: no such file or folder; check the path"
        except UserError as error:
            failures[name] = str(error)
    jobs = _unique(jobs, output)
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        for path in job.outputs(2):
            if path.resolve() in sources:
                raise UserError(
                    f"{path}: is an input as well; choose another --output than {output}"
                )
    return jobs, failures


def _job(key: str, source: Path, output: Path) -> Job:
    return Job(key, source, f"{output}/{key}_spk{{n}}.wav")


def _folder_jobs(folder: Path, output: Path) -> Iterator[Job]:
    inside = output.resolve()
    if inside == folder.resolve():
        raise UserError(f"{folder}: is --output as well; write to another folder")
    found = False
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in AUDIO_SUFFIXES or not path.is_file():
            continue
        if path.name.startswith(".") or inside in path.resolve().parents:
            continue
        found = True
        yield _job(str(path.relative_to(folder).with_suffix("")), path, output)
    if not found:
        raise UserError(f"{folder}: no audio files in it; give a folder with recordings")


def _scp_jobs(scp: Path, output: Path) -> Iterator[Job]:
    for key, value in read_scp(scp).items():
        if value.rstrip().endswith("|"):
            raise UserError(
                f"{scp}: {key} is a command ({value}), and commands are not run; write the audio "
                "to files first"
            )
        if "/" in key or key in (".", ".."):
            raise UserError(f"{scp}: key {key!r} cannot be a file name; rename it")
        yield Job(key, Path(value), f"{output}/wavs/{{n}}/{key}.wav", listed=True)


def _unique(jobs: list[Job], output: Path) -> list[Job]:
    """Recordings of one name that differ in their ending keep the ending."""
    counts = Counter(job.key for job in jobs)
    named = [
        _job(f"{job.key}{job.source.suffix}", job.source, output)
        if counts[job.key] > 1 and not job.listed
        else job
        for job in dict.fromkeys(jobs)
    ]
    for key, count in Counter(job.key for job in named).items():
        if count > 1:
            sources = ", ".join(str(job.source) for job in named if job.key == key)
            raise UserError(
                f"{sources}: would both be written as {key}; separate them into different "
                "--output folders"
            )
    return named
