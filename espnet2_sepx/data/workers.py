"""Worker processes with a progress bar, and folders only one run works in."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import re
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from espnet2_sepx.errors import UserError

_CHUNK = 8  # items a worker gets at a time

Run = Callable[[Callable[[Any], Any], Sequence[Any], str], Iterator[Any]]


def start_server(preload: Sequence[str]) -> None:
    """Let the server of ``workers`` import these modules while we do something else."""
    multiprocessing.set_forkserver_preload(list(preload))
    multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def workers(count: int) -> Iterator[Run]:
    """Yield ``run(task, items, title)``: results in the order of the items, with a progress bar.

    One worker is this process. More are forked off a server that has done nothing but import (see
    ``start_server``), since a child forked off us inherits whatever threads and libraries hold.
    """
    if count == 1:
        yield functools.partial(_run, map)
        return
    context = multiprocessing.get_context("forkserver")
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_follow_parent)
    try:
        yield functools.partial(_run, functools.partial(_map_in_order, executor, 4 * count))
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; try again with --nj 1"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _map_in_order(
    executor: ProcessPoolExecutor, ahead: int, task: Callable[[Any], Any], items: Sequence[Any]
) -> Iterator[Any]:
    """Results in order, few chunks under way: memory does not grow with the number of items."""
    under_way: deque[Future[list[Any]]] = deque()
    for start in range(0, len(items), _CHUNK):
        under_way.append(executor.submit(_apply, task, items[start : start + _CHUNK]))
        if len(under_way) >= ahead:
            yield from under_way.popleft().result()
    while under_way:
        yield from under_way.popleft().result()


def _apply(task: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [task(item) for item in items]


def _run(
    apply: Callable[..., Iterator[Any]],
    task: Callable[[Any], Any],
    items: Sequence[Any],
    title: str,
) -> Iterator[Any]:
    with tqdm(total=len(items), desc=title, mininterval=1) as bar:
        for result in apply(task, items):
            bar.update()
            yield result


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it: a killed one cannot end its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def locked(*folders: Path) -> Iterator[None]:
    """Make folders and lock them against other runs; drop what killed runs left in them.

    Folders that are empty in the end are removed.
    """
    with contextlib.ExitStack() as stack:
        unique = sorted(set(folders))
        for folder in unique:
            stack.callback(_remove_if_empty, folder)
            stack.callback(os.close, _lock(folder))
        for folder in unique:
            for path in folder.iterdir():
                if re.fullmatch(r"\.(train|valid|test)\.tmp\d+", path.name):
                    shutil.rmtree(path, ignore_errors=True)
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _lock(folder: Path) -> int:
    """File descriptor that holds the lock; the lock goes with it, or with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror}; choose a folder you may write to"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another run that works in {folder}", file=sys.stderr)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor
