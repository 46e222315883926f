"""What run.py and slurm.py share: Kaldi's command line, one logged task, progress, failures."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from process_guard import start_guarded

PROGRESS_VARIABLE = "JOB_PROGRESS"  # environment variable with the same meaning as --progress
TAIL_LINES = 20
TAIL_BYTES = 65536

_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# "[host] 2026-01-31 12:00:00,123 (trainer:330) INFO: " in front of ESPnet's messages
_LOGGING_PREFIX = re.compile(r"^(\[[^\]]*\] )?\d{4}-\d\d-\d\d [\d:,]+ (\([^)]*\) )?[A-Z]+: ")
_OWN_LINE = re.compile(r"^#( (Running on|Started at|Accounting:|Ended \(code) .*)?$")
_JOB_RANGE = re.compile(r"^([A-Za-z_]\w*)=(\d+)(?::(\d+))?$")


class UsageError(Exception):
    """A wrong command line or environment; the message is one line with the remedy."""


@dataclass(frozen=True)
class Request:
    """A parsed command line. ``options`` holds names without dashes, with underscores."""

    options: dict[str, str]
    job_name: str | None
    first: int
    last: int
    log: str
    command: list[str]

    @property
    def jobs(self) -> range:
        return range(self.first, self.last + 1)

    def log_of(self, job: int) -> Path:
        return Path(self._fill_in(self.log, job))

    def command_of(self, job: int) -> list[str]:
        return [self._fill_in(argument, job) for argument in self.command]

    def number(self, option: str, default: int, least: int) -> int:
        """The value of an option as a whole number of at least ``least``."""
        text = self.options.get(option, str(default))
        if not text.isdigit() or int(text) < least:
            raise UsageError(
                f"--{option.replace('_', '-')} takes a number of at least {least}, got '{text}'"
            )
        return int(text)

    def _fill_in(self, text: str, job: int) -> str:
        return text if self.job_name is None else text.replace(self.job_name, str(job))


def parse_arguments(arguments: list[str]) -> Request:
    """Read ``[options] [JOB=1:N] LOG COMMAND ...`` as Kaldi's run.pl and slurm.pl do.

    Options take one argument, except ``-V`` (none) and ``-pe`` (two), and may also follow the job
    range; options that a back end does not know are its own concern.
    """
    rest = list(arguments)
    options: dict[str, str] = {}
    job_name, first, last = None, 1, 1
    while rest:
        match = _JOB_RANGE.match(rest[0])
        if match and job_name is None:
            job_name, first = match[1], int(match[2])
            last = int(match[3] or first)
            if not 1 <= first <= last:
                raise UsageError(f"job range {rest[0]} must be 1 <= first <= last")
            del rest[0]
        elif rest[0].startswith("-"):
            _take_option(rest, options)
        else:
            break
    if len(rest) < 2:
        raise UsageError("a log file and a command are needed; see --help")
    request = Request(options, job_name, first, last, rest[0], rest[1:])
    if last > first and request.log_of(first) == request.log_of(last):
        raise UsageError(f"a range of jobs needs {job_name} in the log's name, got '{rest[0]}'")
    return request


def _take_option(rest: list[str], options: dict[str, str]) -> None:
    switch, equals, value = rest.pop(0).partition("=")
    if switch == "-V":
        return
    if not equals:
        count = 2 if switch == "-pe" else 1
        if len(rest) < count:
            raise UsageError(f"option {switch} lacks its value")
        values, rest[:count] = rest[:count], []
        value = values[-1]
    name = {"-tc": "max_jobs_run", "-pe": "num_threads"}.get(
        switch, switch.lstrip("-").replace("-", "_")
    )
    if name == "max_jobs_run" and name in options and value.isdigit():
        value = min(value, options[name], key=int)  # the stricter of two limits, as in run.pl
    options[name] = value


def job_environment(request: Request) -> dict[str, str]:
    """Environment of the jobs: no GPU with ``--gpu 0``, as many threads as ``--num-threads``."""
    environment = dict(os.environ)
    environment.pop(PROGRESS_VARIABLE, None)
    if "gpu" in request.options and request.number("gpu", 0, least=0) == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if "num_threads" in request.options:
        environment["OMP_NUM_THREADS"] = str(request.number("num_threads", 1, least=1))
    return environment


class Task:
    """One command whose output goes to a log with Kaldi's header and footer.

    The command is run as it is, without a shell: operators such as ``|`` need ``bash -c``.
    """

    def __init__(
        self, command: list[str], log: Path, environment: dict[str, str], threads: int = 1
    ) -> None:
        self.command = command
        self.log = log
        self.environment = environment
        self.threads = threads
        self.code: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._start_s = 0.0

    def start(self) -> None:
        self._start_s = time.time()
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            stream = open(self.log, "wb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise UsageError(f"cannot write the log {self.log}: {error.strerror}") from error
        with stream:
            stream.write(
                f"# {shlex.join(self.command)}\n# Running on {socket.gethostname()}\n"
                f"# Started at {time.ctime()}\n#\n".encode(errors="surrogateescape")
            )
            stream.flush()
            try:
                self._process = start_guarded(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                )
            except OSError as error:
                stream.write(f"{self.command[0]}: {error.strerror}\n".encode())
                stream.flush()
                self._finish(126 if isinstance(error, PermissionError) else 127)

    def poll(self) -> int | None:
        """The exit status, 128 + n after signal n, or None while the command runs."""
        if self.code is None and self._process is not None:
            code = self._process.poll()
            if code is not None:
                self._finish(code if code >= 0 else 128 - code)
        return self.code

    def _finish(self, code: int) -> None:
        elapsed = round(time.time() - self._start_s)
        with open(self.log, "rb+") as stream:
            stream.seek(-1, os.SEEK_END)
            separator = "" if stream.read(1) == b"\n" else "\n"
            stream.write(
                f"{separator}# Accounting: time={elapsed} threads={self.threads}\n"
                f"# Ended (code {code}) at {time.ctime()}, "
                f"elapsed time {elapsed} seconds\n".encode()
            )
        self.code = code


def read_tail(log: Path) -> list[str]:
    """Last lines of a log, as a terminal would show them, without our own comment lines."""
    try:
        with open(log, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            start = max(0, stream.tell() - TAIL_BYTES)
            stream.seek(start)
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    lines = _ESCAPE_SEQUENCE.sub("", text).split("\n")
    del lines[0]  # the command, or a line whose beginning we have not read
    shown = [[part for part in line.split("\r") if part.strip()] for line in lines]
    return [
        parts[-1].rstrip()  # tqdm rewrites its line after each carriage return
        for parts in shown
        if parts and not _OWN_LINE.match(parts[-1])
    ]


class Progress:
    """Sign of life while jobs run: one changing line on a terminal, else a line now and then."""

    def __init__(
        self, request: Request, stream: TextIO = sys.stderr, interval_s: float = 15.0
    ) -> None:
        self.label = request.options.get("progress") or os.environ.get(PROGRESS_VARIABLE, "")
        self.total = len(request.jobs)
        self.stream = stream
        self.on_terminal = stream.isatty()
        self.interval_s = 0.5 if self.on_terminal else interval_s
        self._start_s = self._last_s = time.monotonic()

    def update(self, done: int, running: Iterable[Path], note: str = "") -> None:
        """Show the state if it is time to; ``running`` are the logs of unfinished jobs."""
        now = time.monotonic()
        if not self.label or now - self._last_s < self.interval_s:
            return
        self._last_s = now
        counts = f", {done}/{self.total} jobs done" if self.total > 1 else ""
        message = f"{self.label}: {self._elapsed()}{counts}{note}"
        newest = max((log for log in running if log.exists()), key=_modified, default=None)
        last = read_tail(newest)[-1:] if newest else []
        if last:
            message += f" | {_LOGGING_PREFIX.sub('', last[0]).strip()}"
        width = os.get_terminal_size(self.stream.fileno()).columns if self.on_terminal else 160
        width = width or 80  # a terminal that does not know its size says 0
        self._show(message[: width - 1], "" if self.on_terminal else "\n")

    def close(self, failed: int) -> None:
        """Print the outcome."""
        if self.label:
            jobs = f" ({self.total} jobs)" if self.total > 1 else ""
            outcome = f"{failed} of {self.total} failed after" if failed else "done in"
            self._show(f"{self.label}: {outcome} {self._elapsed()}{jobs}", "\n")

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._start_s), 60)
        hours, minutes = divmod(minutes, 60)
        return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{seconds:02d}"

    def _show(self, message: str, end: str) -> None:
        start, erase = ("\r", "\x1b[K") if self.on_terminal else ("", "")
        print(f"{start}{message}{erase}", end=end, file=self.stream, flush=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def report_failures(program: str, request: Request, codes: dict[int, int]) -> int:
    """Say which jobs failed, where their logs are, and how the first one ends.

    Args:
        program: name to put in front.
        request: what was run.
        codes: job -> exit status.

    Returns:
        Exit status of the whole: 0 if all jobs succeeded, 2 if the first failure ends its log with
        ``error: ...`` (wrong input; only that line is shown), else 1.
    """
    failed = [job for job, code in codes.items() if code != 0]
    if not failed:
        return 0
    log, code = request.log_of(failed[0]), codes[failed[0]]
    tail = read_tail(log)[-TAIL_LINES:]
    if tail and tail[-1].startswith("error: "):  # the command's own diagnosis says it all
        print(f"{tail[-1]} (log: {log})", file=sys.stderr)
        return 2
    why = f"code {code}"
    if 128 < code <= 128 + signal.SIGRTMAX:
        why += f", signal {code - 128}"
    if code == 128 + signal.SIGKILL:
        why += ": killed, perhaps for lack of memory"
    if len(codes) == 1:
        print(f"{program}: job failed ({why}), log is in {log}", file=sys.stderr)
    else:
        logs = request.log.replace(request.job_name or "", "*")
        counts = f"{len(failed)} / {len(codes)}"
        print(f"{program}: {counts} failed, logs are in {logs}", file=sys.stderr)
        print(f"{program}: first failure ({why}): {log}", file=sys.stderr)
    print(f"{program}: last lines of {log}:" if tail else f"{program}: no output", file=sys.stderr)
    for line in tail:
        print(f"  | {line}", file=sys.stderr)
    return 1
