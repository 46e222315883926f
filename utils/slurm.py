#!/usr/bin/env python3
"""Run jobs through Slurm, each with its own log (option-compatible with Kaldi's slurm.pl).

Usage: slurm.py [options] [JOB=1:N] LOG COMMAND [ARGUMENT ...]
e.g.:  slurm.py --mem 4G --gpu 1 exp/log/train.log python3 train.py
       slurm.py --max-jobs-run 8 JOB=1:32 exp/log/score.JOB.log score.py split.JOB

JOB (any name) is replaced in LOG and in all arguments; an array of jobs is one Slurm array. Waits
for the jobs; the exit status is 0 if all succeed, otherwise the failed log is named and its last
lines are shown. If this process, or the script that called it, ends, the jobs are cancelled.

Options:
  --max-jobs-run N   jobs of an array at a time
  --progress LABEL   show elapsed time, finished and waiting jobs and the newest log line on stderr
                     (as does the environment variable JOB_PROGRESS=LABEL)
  --config FILE      how options become arguments of sbatch, in Kaldi's format
                     (default: conf/slurm.conf if it exists, else the rules below)
Any other option, such as --gpu N, --mem 4G, --num-threads N, --time 4:00:00, --partition NAME,
needs a rule in that file. --gpu 0 hides the GPUs from the job, --num-threads sets OMP_NUM_THREADS.
The rules that hold without a file:

{rules}

The working folder must be on a file system that the nodes share; ./path.sh is sourced if there.
Unlike slurm.pl, no shell interprets the command: for pipes say  bash -c '...'.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from job_common import (
    Progress,
    Request,
    Task,
    UsageError,
    job_environment,
    parse_arguments,
    report_failures,
)
from process_guard import run_guarded, termination_deferred

DEFAULT_RULES = """\
command sbatch --export=ALL
option time=* --time $0
option mem=* --mem-per-cpu $0
option mem=0
option partition=* --partition $0
option num_threads=* --cpus-per-task $0 --ntasks-per-node=1
option num_nodes=* --nodes $0 --ntasks-per-node=1
default gpu=0
option gpu=0
option gpu=* --gres=gpu:$0"""

LOCAL_OPTIONS = ("config", "max_jobs_run", "progress")
LOST = 255  # status of a job that left the queue without a word
STATUS_EVERY_S = 1.0
QUEUE_EVERY_S = 10.0
LOST_AFTER_S = 30.0  # a finished job's status file may take that long to show up over NFS


def sbatch_command(options: dict[str, str], rules: str, origin: str) -> list[str]:
    """Translate options by a Kaldi configuration file.

    Args:
        options: option -> value, as given.
        rules: text with lines ``command ...``, ``option NAME=VALUE ...``, ``option NAME=* ...`` in
            which $0 stands for the value, and ``default NAME=VALUE``.
        origin: where the rules come from, for messages.
    """
    options = {name: value for name, value in options.items() if name not in LOCAL_OPTIONS}
    command: list[str] = []
    translations: dict[tuple[str, str], str] = {}
    for line in rules.splitlines():
        kind, _, rest = line.partition("#")[0].strip().partition(" ")
        name, equals, translation = rest.strip().partition("=")
        value, _, arguments = translation.partition(" ")
        if kind == "command" and rest:
            command = shlex.split(rest)
        elif kind == "option" and equals and value:
            translations[name, value] = arguments.strip()
        elif kind == "default" and equals and value:
            options.setdefault(name, value)
        elif kind:
            raise UsageError(f"cannot understand the line '{line}' in {origin}")
    if not command:
        raise UsageError(f"no line 'command sbatch ...' in {origin}")
    for name, value in options.items():
        if (name, value) in translations:
            command += shlex.split(translations[name, value])
        elif (name, "*") in translations:
            pieces = shlex.split(translations[name, "*"])
            command += [piece.replace("$0", value) for piece in pieces]
        else:
            raise UsageError(
                f"option --{name.replace('_', '-')} {value} has no rule in {origin}; "
                f"add a line 'option {name}=* ... $0'"
            )
    return command


def read_rules(options: dict[str, str]) -> tuple[str, str]:
    """Text of the configuration and its name."""
    path = Path(options.get("config", "conf/slurm.conf"))
    if "config" not in options and not path.exists():
        return DEFAULT_RULES, "the default rules (see --help)"
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except OSError as error:
        raise UsageError(f"cannot read --config {path}: {error.strerror}") from error


class Submission:
    """A submitted array and the folder in which its tasks leave their exit status."""

    def __init__(self, request: Request) -> None:
        name = request.log.replace(request.job_name, "") if request.job_name else request.log
        self.request = request
        self.name = Path(name).name.replace("..", ".").strip(".")
        self.folder = Path(name).parent.resolve() / "q" / self.name
        self.command = sbatch_command(request.options, *read_rules(request.options))
        self.identifier = ""

    def submit(self) -> None:
        """Write the batch script and hand it to sbatch."""
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"cannot write {self.folder}: {error.strerror}") from error
        request = self.request
        (self.folder / "arguments.json").write_text(json.dumps(sys.argv[1:]), encoding="utf-8")
        runner = [sys.executable, str(Path(__file__).resolve()), "--run-task", str(self.folder)]
        script = self.folder / "job.sh"
        script.write_text(
            f"#!/bin/bash\ncd {shlex.quote(os.getcwd())} || exit 1\n"
            "[ ! -f path.sh ] || . ./path.sh\n"
            f'exec {shlex.join(runner)} "${{SLURM_ARRAY_TASK_ID:-{request.first}}}"\n',
            encoding="utf-8",
        )
        command = [*self.command, "--parsable", "--job-name", self.name]
        command += ["--output", str(self.folder / "slurm.%a.log"), "--open-mode=append"]
        if request.job_name:
            limit = request.options.get("max_jobs_run")
            together = f"%{request.number('max_jobs_run', 1, least=1)}" if limit else ""
            command += ["--array", f"{request.first}-{request.last}{together}"]
        try:
            with termination_deferred():  # or we would not know what to cancel
                answer = subprocess.run(
                    [*command, str(script)], capture_output=True, text=True, check=False
                )
                self.identifier = answer.stdout.strip().partition(";")[0]
        except OSError as error:
            raise UsageError(
                f"{command[0]}: {error.strerror}; submit from a machine with Slurm, "
                "or set the commands in cmd.sh to utils/run.py"
            ) from error
        if answer.returncode != 0 or not self.identifier:
            reason = " ".join(answer.stderr.split())
            raise UsageError(f"{shlex.join(command)} failed: {reason}")

    def statuses(self) -> dict[int, int]:
        """Exit status of each job that has ended."""
        return {
            int(path.stem): int(path.read_text(encoding="utf-8"))
            for path in self.folder.glob("*.status")
        }

    def queue_states(self) -> list[str] | None:
        """States (PENDING, RUNNING, ...) of jobs in the queue; None if Slurm does not answer."""
        answer = subprocess.run(
            ["squeue", "--noheader", "--array", "--jobs", self.identifier, "--format", "%T"],
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
            return None
        return answer.stdout.split()

    def cancel(self) -> None:
        if self.identifier:
            subprocess.run(["scancel", self.identifier], check=False)


def wait_for(submission: Submission) -> dict[int, int]:
    """Wait until all jobs have ended. Returns job -> exit status."""
    request = submission.request
    progress = Progress(request)
    last_query_s = time.monotonic()
    gone_since_s: float | None = None
    note = ""
    while True:
        codes = submission.statuses()
        missing = [job for job in request.jobs if job not in codes]
        if not missing:
            break
        now = time.monotonic()
        if now - last_query_s > QUEUE_EVERY_S:
            last_query_s = now
            states = submission.queue_states()
            if states is not None:
                counts = Counter(state.lower() for state in states)
                note = "".join(f", {count} {state}" for state, count in sorted(counts.items()))
                gone_since_s = None if states else gone_since_s or now
        if gone_since_s is not None and now - gone_since_s > LOST_AFTER_S:
            codes.update(dict.fromkeys(missing, LOST))
            break
        progress.update(len(codes), [request.log_of(job) for job in missing], note)
        time.sleep(STATUS_EVERY_S)
    progress.close(sum(code != 0 for code in codes.values()))
    return dict(sorted(codes.items()))


def report_lost(program: str, submission: Submission, codes: dict[int, int]) -> None:
    """For jobs that Slurm ended (time or memory limit, node failure): show what it says."""
    lost = [job for job, code in codes.items() if code == LOST]
    if lost:
        print(
            f"{program}: Slurm ended task {lost[0]} of its job {submission.identifier}; "
            f"see {submission.folder} and: sacct -j {submission.identifier}",
            file=sys.stderr,
        )
        for log in sorted(submission.folder.glob("slurm.*.log"))[:1]:
            for line in log.read_text(errors="replace").splitlines()[-3:]:
                print(f"  | {line}", file=sys.stderr)


def submit_and_wait(program: str, request: Request) -> int:
    submission = Submission(request)
    codes = None
    try:
        submission.submit()
        codes = wait_for(submission)
    finally:
        if codes is None:
            submission.cancel()
        if codes is None or LOST not in codes.values():
            shutil.rmtree(submission.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # other jobs may use it
                submission.folder.parent.rmdir()
    report_lost(program, submission, codes)
    return report_failures(program, request, codes)


def run_task(folder: Path, job: int) -> int:
    """On the node: run one job of the array and leave its exit status in ``folder``."""
    arguments = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
    request = parse_arguments(arguments)
    threads = request.number("num_threads", 1, least=1)
    task = Task(request.command_of(job), request.log_of(job), job_environment(request), threads)
    task.start()
    while task.poll() is None:
        time.sleep(0.1)
    unfinished = folder / f"{job}.unfinished"
    unfinished.write_text(str(task.code), encoding="utf-8")
    unfinished.replace(folder / f"{job}.status")
    return task.code or 0


def main() -> None:
    program = Path(sys.argv[0]).name
    if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help"):
        rules = "\n".join(f"  {line}" for line in DEFAULT_RULES.splitlines())
        print(__doc__.strip().format(rules=rules))
        return

    def work() -> int:
        try:
            if sys.argv[1] == "--run-task":
                return run_task(Path(sys.argv[2]), int(sys.argv[3]))
            return submit_and_wait(program, parse_arguments(sys.argv[1:]))
        except UsageError as error:
            print(f"error: {program}: {error}", file=sys.stderr)
            return 2

    run_guarded(work)


if __name__ == "__main__":
    main()
