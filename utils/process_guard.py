"""Work in processes that never outlive the script which started them.

``run_guarded(work)`` splits the program in two. The front stays where it was started, waits, and
passes signals on; the supervisor does the work in a session of its own, so that a kill of the
script's process group does not take both. Whichever of them dies, by whatever signal, the other
one hears of it from the kernel and ends every process that descends from the work: both adopt
orphans (PR_SET_CHILD_SUBREAPER), so grandchildren such as data loading workers cannot slip away.
The front itself ends when its parent ends (PR_SET_PDEATHSIG): a script killed with SIGKILL, with
no chance to clean up, leaves nothing running. If the parent is a subshell, the shell that it was
forked from counts as well.

Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 3.0  # between SIGTERM and SIGKILL
GIVE_UP_S = 30.0  # a process in uninterruptible sleep cannot be ended at all
WATCH_EVERY_S = 0.5

_prctl = ctypes.CDLL(None).prctl


class Terminated(BaseException):
    """Raised in the supervisor by SIGTERM: from the user, or because the front has died."""


def set_parent_death_signal(number: int, parent: int | None = None) -> None:
    """Ask the kernel for a signal when the parent dies; ``parent`` is its process id if known.

    A parent that died before the call is noticed too.
    """
    if parent is None:
        parent = os.getppid()
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def termination_deferred() -> Iterator[None]:
    """In the supervisor: `Terminated` is raised after this block, not in it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def start_guarded(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """`subprocess.Popen` in a session of its own; the process dies with the supervisor."""
    supervisor = os.getpid()

    def prepare() -> None:  # between fork and exec: our handler must not run in the child
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        set_parent_death_signal(signal.SIGKILL, supervisor)

    with termination_deferred():
        return subprocess.Popen(command, start_new_session=True, preexec_fn=prepare, **options)


def _state_and_parent(pid: int) -> tuple[str, int]:
    """State letter and parent of a process; ("", 0) if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "", 0
    # "pid (name) state ppid ...", where the name may hold blanks and parentheses
    state, parent = stat.rpartition(")")[2].split()[:2]
    return state, int(parent)


def _subshells() -> dict[int, int]:
    """The parent and its ancestors as far as they are subshells: process id -> forked from.

    A subshell is known by having the command line of the shell it was forked from.
    """

    def command_line(pid: int) -> bytes:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return b""

    found: dict[int, int] = {}
    shell = os.getppid()
    while True:
        parent = _state_and_parent(shell)[1]
        if not parent or not command_line(parent) or command_line(parent) != command_line(shell):
            return found
        found[shell] = parent
        shell = parent


def _descendants() -> set[int]:
    """All living descendants of this process, zombies left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        state, parent = _state_and_parent(int(entry.name))
        if state not in ("", "Z"):
            children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    border = [os.getpid()]
    while border:
        border = [child for parent in border for child in children.get(parent, [])]
        found.update(border)
    return found


def _reap() -> dict[int, int]:
    """Collect ended children, adopted ones included: process id -> wait status."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def end_descendants() -> None:
    """End every process below this one: SIGTERM, and after a while SIGKILL."""
    start = time.monotonic()
    signalled: set[int] = set()
    while time.monotonic() - start < GIVE_UP_S:
        _reap()
        alive = _descendants()
        if not alive:
            return
        overdue = time.monotonic() - start > GRACE_S
        for pid in alive if overdue else alive - signalled:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL if overdue else signal.SIGTERM)
        signalled |= alive
        time.sleep(0.02)


def _supervise(work: Callable[[], int], front: int, unblock: set[signal.Signals]) -> None:
    """Body of the supervisor; does not return."""

    def terminate(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    code = 1
    try:
        os.setsid()
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGTERM, terminate)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, unblock)
        set_parent_death_signal(signal.SIGTERM, front)
        code = work()
    except (Terminated, KeyboardInterrupt):
        code = 128 + signal.SIGTERM
    except BaseException:
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_descendants()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_guarded(work: Callable[[], int]) -> None:
    """Run ``work`` and exit with the status it returns, leaving no process behind.

    ``work`` runs in a child process and may raise no error that it wants handled here. On SIGINT,
    SIGTERM or SIGHUP, `Terminated` is raised in it, and this process then ends by that signal.
    """
    set_parent_death_signal(signal.SIGTERM)
    subshells = _subshells()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    awaited = {signal.SIGCHLD} | {
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup, background jobs
    }
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    sys.stdout.flush()
    sys.stderr.flush()
    front = os.getpid()
    supervisor = os.fork()
    if supervisor == 0:
        _supervise(work, front, awaited)

    received = None
    status = None
    while status is None:
        arrived = signal.sigtimedwait(awaited, WATCH_EVERY_S)
        number = arrived.si_signo if arrived is not None else 0
        if number == signal.SIGCHLD:
            status = _reap().get(supervisor)
        elif number in awaited:  # Python makes up any number after Ctrl-Z and fg
            received = number
        elif any(_state_and_parent(shell)[1] != parent for shell, parent in subshells.items()):
            received = signal.SIGTERM
        if received is not None and status is None:
            os.kill(supervisor, signal.SIGTERM)
    end_descendants()
    if received is not None:  # end in the way the shell expects of an interrupted command
        signal.signal(received, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        os.kill(front, received)
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)
