"""The same work on many items, in several processes, with progress.

Processes are spawned (nothing is inherited but the environment), compute with one thread each, and
end when their parent ends, even if that was killed: Python's own pool would leave them behind.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import TypeVar

from tqdm import tqdm

from espnet2_sepx.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    nj: int = 1,
    description: str = "",
    unit: str = "item",
) -> Iterator[Result]:
    """Results of ``function`` in the order of ``items``, with a progress bar on stderr.

    Args:
        function: defined at the top of a module; with ``nj`` > 1 it, the items and the results are
            sent between processes. An exception in it ends the work and reaches the caller.
        items: what to work on.
        nj: number of processes; 1 computes in this one.
        description: label of the progress bar.
        unit: what an item is, for the progress bar.
    """
    if nj < 1:
        raise ValueError(f"nj must be at least 1, got {nj}")
    with tqdm(total=len(items), desc=description, unit=unit, mininterval=1.0) as progress:
        if nj == 1 or len(items) < 2:
            for item in items:
                yield function(item)
                progress.update()
            return
        with single_threaded_children():
            pool = ProcessPoolExecutor(
                min(nj, len(items)), get_context("spawn"), initializer=_end_with_parent
            )
            try:
                for result in pool.map(function, items):
                    yield result
                    progress.update()
            except BrokenProcessPool as error:
                raise UserError(
                    f"{description}: a worker process died, maybe for want of memory; "
                    "try a smaller --nj"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


@contextmanager
def single_threaded_children() -> Iterator[None]:
    """Processes started in this block compute with one thread each, or they would multiply."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """In a worker: leave as soon as the parent process is gone."""
    parent = parent_process()
    assert parent is not None, "runs in a spawned worker only"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
