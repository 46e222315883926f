"""Real-time factor: seconds of computing per second of audio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def use_threads(threads: int) -> None:
    """Fix the number of threads; once per process, before any other work."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)


def real_time_factor(
    run: Callable[[], Any],
    seconds: float,
    repeats: int = 5,
    warmup: int = 1,
    device: str = "cpu",
) -> dict[str, float | int]:
    """Time ``run``, which processes ``seconds`` of audio; wall clock over ``seconds``.

    Args:
        run: executed ``warmup`` times unmeasured, then ``repeats`` times.
        device: a CUDA device is waited for before each look at the clock.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    for _ in range(warmup):
        run()
    factors = []
    for _ in range(repeats):
        start = _now(device)
        run()
        factors.append((_now(device) - start) / seconds)
    return {
        "median": statistics.median(factors),
        "min": min(factors),
        "max": max(factors),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "warmup": warmup,
    }


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
