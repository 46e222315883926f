"""Many recordings: each in its own time, none stopping the others, all on one summary.

Every recording that is finished or has failed is one line of ``separate.jsonl`` in the output
folder, which a later run reads to go on where this one stopped; ``separate.json`` is the summary.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from espnet2_sepx.data.kaldi import write_scp
from espnet2_sepx.errors import UserError
from espnet2_sepx.files import atomic_write
from espnet2_sepx.infer.activity import ActivityTrack
from espnet2_sepx.infer.audio import Recording, TrackWriter
from espnet2_sepx.infer.jobs import Job
from espnet2_sepx.infer.separator import Options, Separator
from espnet2_sepx.parallel import map_in_processes

JOURNAL, SUMMARY = "separate.jsonl", "separate.json"
SCHEMA = 1

Result = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A job with all that a worker process needs for it."""

    job: Job
    options: Options
    subtype: str
    activity: bool
    fingerprint: str


def separate_file(
    separator: Separator, task: Task, progress: Callable[[float], object] = lambda seconds: None
) -> Result:
    """Separate one recording and write its outputs.

    Args:
        progress: told how many seconds of audio have gone in.

    Raises:
        UserError: the recording cannot be read, or the outputs cannot be written.
    """
    begin = time.perf_counter()
    job, options = task.job, task.options
    paths = job.outputs(separator.num_spk)
    with Recording(job.source) as recording:
        channels = recording.channels if options.channels == "each" else 1
        session = separator.start(recording.fs, recording.channels)
        activity = ActivityTrack(recording.fs) if task.activity else None
        cancelled = _Cancellation()
        with TrackWriter(paths, recording.fs, channels, recording.samples, task.subtype) as writer:
            for block in recording.blocks():
                cancelled.look_at(block)
                streams = session.push(block)
                writer.write(streams)
                if activity is not None:
                    activity.push(streams)
                progress(len(block) / recording.fs)
            streams = session.flush()
            writer.write(streams)
            progress(0.0)  # the last chunk is done
        result: Result = {
            "key": job.key,
            "input": str(job.source),
            "outputs": [str(path) for path in paths],
            "seconds": recording.seconds,
            "fs": recording.fs,
            "gain": writer.gain,
            "joints": [joint.as_dict() for joint in session.engine.joints],
        }
    if activity is not None:
        activity.push(streams)
        activity.write(job.rttm, job.key)
        result["activity"] = str(job.rttm)
    if options.channels == "mix" and cancelled.found:
        result["note"] = "its channels cancel in the mean; try --channels first or each"
    result["wall_s"] = time.perf_counter() - begin
    result["rtf"] = result["wall_s"] / recording.seconds
    result["fingerprint"] = task.fingerprint
    return result


class _Cancellation:
    """Notices channels of opposite sign, whose mean is next to nothing."""

    def __init__(self) -> None:
        self._mean = self._each = 0.0

    def look_at(self, block: np.ndarray) -> None:
        self._mean += float(np.square(block.mean(1)).sum())
        self._each += float(np.square(block).mean(1).sum())

    @property
    def found(self) -> bool:
        return self._mean < 1e-3 * self._each


def run_task(task: Task, progress: Callable[[float], object] = lambda seconds: None) -> Result:
    """``separate_file``, with whatever goes wrong as a result that has ``error``."""
    try:
        return separate_file(_separator(task.options), task, progress)
    except UserError as error:
        message = str(error)
    except MemoryError:
        message = f"{task.job.source}: not enough memory; try a smaller --chunk_s"
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"{task.job.source}: {type(error).__name__}: {reason}; please report this"
    return {"key": task.job.key, "input": str(task.job.source), "error": message}


@lru_cache(maxsize=1)
def _separator(options: Options) -> Separator:
    """The model of this process."""
    return Separator(options)


def run_batch(
    jobs: list[Job],
    failures: dict[str, str],
    options: Options,
    output: Path,
    *,
    subtype: str = "FLOAT",
    activity: bool = False,
    nj: int = 1,
    overwrite: bool = False,
    report: Callable[[str], object] = lambda line: None,
) -> Result:
    """Do all jobs that an earlier run has not done, and write the summary.

    Args:
        failures: inputs that gave no jobs, with the reason.
        report: gets a line per failure as it happens.

    Returns:
        the summary.

    Raises:
        UserError: the model is not usable, or the output folder cannot be written.
    """
    begin = time.perf_counter()
    separator = _separator(options)  # before anything else: a wrong model fails here, once
    tasks = [
        Task(job, options, subtype, activity, _fingerprint(job, options, subtype, activity))
        for job in jobs
    ]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output {output}: cannot be made ({error.strerror}); choose another"
        ) from error
    earlier = {} if overwrite else _read_journal(output / JOURNAL)
    done = [entry for task in tasks if (entry := _done(task, earlier)) is not None]
    finished = {entry["key"] for entry in done}
    results = list(done)
    for result in _run([task for task in tasks if task.job.key not in finished], nj):
        if "error" in result:
            report(result["error"])
        else:
            _append(output / JOURNAL, result)
        results.append(result)
    for name, message in failures.items():
        report(message)
        results.append({"key": name, "input": name, "error": message})
    _write_scps(output, [task.job for task in tasks], results, separator.num_spk)
    summary = _summarise(results, len(done), options, time.perf_counter() - begin)
    with atomic_write(output / SUMMARY) as stream:
        json.dump(summary, stream, indent=1)
        stream.write("\n")
    return summary


def _run(tasks: list[Task], nj: int) -> Iterator[Result]:
    if not tasks:
        return
    if nj > 1 and len(tasks) > 1:
        yield from map_in_processes(run_task, tasks, nj, "separating", "file")
        return
    bar = "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}{postfix}]"
    seconds = [_seconds(task.job.source) for task in tasks]
    with tqdm(total=sum(seconds), desc="separating", mininterval=0.5, bar_format=bar) as progress:
        begin = time.perf_counter()

        def advance(part: float) -> None:
            progress.update(part)
            rtf = (time.perf_counter() - begin) / max(progress.n, 1e-9)
            progress.set_postfix_str(f"RTF {rtf:.3f}", refresh=False)

        for task in tasks:
            yield run_task(task, advance)


def _seconds(path: Path) -> float:
    try:
        with Recording(path) as recording:
            return recording.seconds
    except UserError:  # reported when its turn comes
        return 0.0


def _fingerprint(job: Job, options: Options, subtype: str, activity: bool) -> str:
    """Changes whenever the outputs of a job would."""
    from espnet2_sepx.infer.find import find_model

    try:
        facts = job.source.stat()
        source = [facts.st_size, facts.st_mtime_ns]
    except OSError:
        source = []
    model = find_model(options.model, options.model_file, options.zoo).identity
    how = {key: value for key, value in asdict(options).items() if key != "threads"}
    return json.dumps([str(job.source.resolve()), source, model, how, subtype, activity])


def _read_journal(path: Path) -> dict[str, Result]:
    """Entries by key, the latest of each; a line that a kill cut off is left out."""
    entries: dict[str, Result] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return entries
    for line in lines:
        try:
            entry = json.loads(line)
            entries[entry["key"]] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return entries


def _append(path: Path, result: Result) -> None:
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(f"\n{json.dumps(result)}")  # a line that was cut off ends here
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); check --output") from error


def _done(task: Task, earlier: dict[str, Result]) -> Result | None:
    entry = earlier.get(task.job.key)
    if entry is None or entry.get("fingerprint") != task.fingerprint:
        return None
    files = [*entry["outputs"], *([entry["activity"]] if "activity" in entry else [])]
    return entry if all(Path(path).is_file() for path in files) else None


def _write_scps(output: Path, jobs: list[Job], results: list[Result], speakers: int) -> None:
    good = {result["key"] for result in results if "error" not in result}
    listed = [job for job in jobs if job.listed and job.key in good]
    if listed:
        for index in range(speakers):
            table = {job.key: job.outputs(speakers)[index].absolute() for job in listed}
            write_scp(output / f"spk{index + 1}.scp", table)


def _summarise(results: list[Result], skipped: int, options: Options, wall_s: float) -> Result:
    good = [result for result in results if "error" not in result]
    worked = sum(result["wall_s"] for result in good)
    seconds = sum(result["seconds"] for result in good)
    joints = [joint for result in good for joint in result["joints"]]
    from espnet2_sepx.infer.align import LOW_CONFIDENCE

    return {
        "schema": SCHEMA,
        "model": options.model,
        "options": asdict(options),
        "files": len(results),
        "done_before": skipped,
        "failed": len(results) - len(good),
        "seconds": seconds,
        "rtf": worked / seconds if seconds else None,
        "wall_s": wall_s,
        "joints": len(joints),
        "joints_with_low_confidence": sum(joint["confidence"] < LOW_CONFIDENCE for joint in joints),
        "results": [
            {key: value for key, value in result.items() if key != "fingerprint"} for result in good
        ],
        "failures": [result for result in results if "error" in result],
    }
