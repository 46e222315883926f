#!/usr/bin/env python3
"""Run jobs on this machine, each with its own log (option-compatible with Kaldi's run.pl).

Usage: run.py [options] [JOB=1:N] LOG COMMAND [ARGUMENT ...]
e.g.:  run.py exp/log/train.log python3 train.py
       run.py --max-jobs-run 4 JOB=1:16 exp/log/score.JOB.log score.py split.JOB

JOB (any name) is replaced in LOG and in all arguments. The exit status is 0 if all jobs succeed;
otherwise the failed log is named and its last lines are shown (or only the last, and status 2, if
it begins with "error: "). All jobs end when this process, or
the script that called it, ends by whatever signal.

Options:
  --max-jobs-run N   jobs at a time (default: processors / threads, or number of GPUs)
  --gpu N            GPUs per job; 0 hides them all; arrays of GPU jobs are spread over the GPUs
  --num-threads N    threads per job: sets OMP_NUM_THREADS
  --progress LABEL   show elapsed time, finished jobs and the newest log line on stderr
                     (as does the environment variable JOB_PROGRESS=LABEL)
Any other option of Kaldi's back ends (--mem 4G, --time 4:00:00, ...) is accepted and ignored.
Unlike run.pl, no shell interprets the command: for pipes say  bash -c '...'.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
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
from process_guard import run_guarded


def visible_gpus() -> list[str]:
    """Names of the GPUs that jobs may use, as CUDA_VISIBLE_DEVICES spells them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return []
    count = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    return [str(index) for index in range(count)]


def gpu_groups(request: Request) -> list[str]:
    """Disjoint sets of GPUs for the jobs of an array; empty if there is nothing to share out."""
    per_job = request.number("gpu", 0, least=0)
    if per_job == 0 or len(request.jobs) == 1:
        return []
    gpus = visible_gpus()
    return [
        ",".join(gpus[start : start + per_job])
        for start in range(0, len(gpus) - per_job + 1, per_job)
    ]


def default_max_jobs(request: Request, groups: list[str]) -> int:
    if request.number("gpu", 0, least=0) > 0:
        return max(1, len(groups))
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        processors = os.cpu_count() or 1
    return max(1, processors // request.number("num_threads", 1, least=1))


def run_all(request: Request) -> dict[int, int]:
    """Run the jobs, so many at a time. Returns job -> exit status."""
    groups = gpu_groups(request)
    max_jobs = request.number("max_jobs_run", default_max_jobs(request, groups), least=1)
    threads = request.number("num_threads", 1, least=1)
    environment = job_environment(request)
    progress = Progress(request)
    waiting = deque(request.jobs)
    running: dict[int, Task] = {}
    group_of: dict[int, str] = {}
    codes: dict[int, int] = {}
    pause_s = 0.01
    while waiting or running:
        while waiting and len(running) < max_jobs:
            job = waiting.popleft()
            if groups:
                busy = [group_of[other] for other in running]
                group_of[job] = min(groups, key=busy.count)
                environment = {**environment, "CUDA_VISIBLE_DEVICES": group_of[job]}
            running[job] = Task(request.command_of(job), request.log_of(job), environment, threads)
            running[job].start()
        time.sleep(pause_s)
        pause_s = min(0.2, pause_s * 1.2)
        for job, task in list(running.items()):
            code = task.poll()
            if code is not None:
                codes[job] = code
                del running[job]
        progress.update(len(codes), [task.log for task in running.values()])
    progress.close(sum(code != 0 for code in codes.values()))
    return codes


def main() -> None:
    program = Path(sys.argv[0]).name
    if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help"):
        print(__doc__.strip())
        return

    def work() -> int:
        try:
            request = parse_arguments(sys.argv[1:])
            return report_failures(program, request, run_all(request))
        except UsageError as error:
            print(f"error: {program}: {error}", file=sys.stderr)
            return 2

    run_guarded(work)


if __name__ == "__main__":
    main()
