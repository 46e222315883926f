"""Time and memory over the length of the input, each point in a process of its own.

Lengths grow until a run would take longer, or hold more memory, than allowed; the next point is
predicted from the last two before it is tried.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from espnet2_sepx.errors import UserError

LENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Seconds of audio."""
TAIL = 8.0
"""Slopes are fitted to lengths from the longest divided by this on, where constants are small."""
KINDS = ((1.2, "linear"), (1.8, "between linear and quadratic"), (math.inf, "quadratic or more"))


@dataclass(frozen=True)
class Limits:
    """What a point may need: seconds of computing for one run, and memory in MB."""

    run_s: float
    memory_mb: float


def available_memory_mb(share: float = 0.8) -> float:
    """This part of the memory that is free now, in 10^6 bytes; no limit if the system is mute."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            kilobytes = next(
                int(row.split()[1]) for row in stream if row.startswith("MemAvailable")
            )
        return share * kilobytes * 1024 / 1e6
    except (OSError, StopIteration):
        return math.inf


def measure_curve(
    measure: Callable[[float], dict[str, Any]], lengths: Sequence[float], limits: Limits
) -> dict[str, Any]:
    """Points of growing length until the limits; see the ``curves`` entry of ``cost.json``.

    Args:
        measure: from a length in seconds to ``{"rtf": ..., "memory_mb": ...}``; ``UserError`` if it
            cannot be measured.
        lengths: in seconds.
        limits: for every point.
    """
    points: list[dict[str, Any]] = []
    stopped = None
    for seconds in sorted(lengths):
        stopped = _too_much(points, seconds, limits)
        if stopped is None:
            try:
                points.append({"seconds": seconds, **measure(seconds)})
            except UserError as error:
                stopped = str(error)
        if stopped is not None:
            stopped = f"{seconds:g} s: {stopped}"
            break
    return {"points": points, "stopped": stopped, "slope": slopes(points)}


def _too_much(points: list[dict[str, Any]], seconds: float, limits: Limits) -> str | None:
    """Why a point would break a limit, by the growth of the last two."""
    if not points:
        return None
    for name, unit, limit, values in (
        ("a run", "s", limits.run_s, [run_seconds(point) for point in points]),
        ("memory", "MB", limits.memory_mb, [point["memory_mb"]["peak"] for point in points]),
    ):
        growth = 1.0
        if len(points) > 1:
            growth = max(1.0, _slope([point["seconds"] for point in points[-2:]], values[-2:]))
        if name == "memory":  # the part that grows
            base = points[-1]["memory_mb"]["baseline"]
            expected = base + (values[-1] - base) * (seconds / points[-1]["seconds"]) ** growth
        else:
            expected = values[-1] * (seconds / points[-1]["seconds"]) ** growth
        if expected > limit:
            return f"{name} would need about {expected:.0f} {unit}, the limit is {limit:.0f} {unit}"
    return None


def run_seconds(point: dict[str, Any]) -> float:
    """Computing time of one run at a point."""
    return point["rtf"]["median"] * point["seconds"]


def slopes(points: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Exponents of growth with length over the longest points; None for fewer than two points.

    ``time`` of a run, and ``memory`` beyond what is held before it.
    """
    tail = [point for point in points if point["seconds"] * TAIL >= points[-1]["seconds"]]
    if len(tail) < 2:
        return None
    lengths = [point["seconds"] for point in tail]
    grown = [max(p["memory_mb"]["peak"] - p["memory_mb"]["baseline"], 1e-3) for p in tail]
    return {
        "time": _slope(lengths, [run_seconds(point) for point in tail]),
        "memory": _slope(lengths, grown),
        "from_s": lengths[0],
        "to_s": lengths[-1],
    }


def _slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least squares of log y over log x."""
    log_x, log_y = ([math.log(value) for value in values] for values in (xs, ys))
    mean_x, mean_y = sum(log_x) / len(log_x), sum(log_y) / len(log_y)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(log_x, log_y, strict=True))
    return covariance / sum((x - mean_x) ** 2 for x in log_x)


def in_words(slope: float) -> str:
    """What an exponent means."""
    return next(word for limit, word in KINDS if slope < limit)


def limit_memory(megabytes: float) -> None:
    """Let this process fail to allocate beyond a size, rather than the system run out (Linux)."""
    if os.name != "posix" or not math.isfinite(megabytes):
        return
    import resource

    size = int(megabytes * 1e6)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size, hard))
