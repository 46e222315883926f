"""A whole measurement: one process for counts and headline figures, one for every other run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from espnet2_sepx.profiling.cost import Request, measure
from espnet2_sepx.profiling.curve import Limits, measure_curve

CURVE_REPEATS = 3
START_S = 120.0
"""Seconds a process may take to build the model."""


@dataclass(frozen=True)
class Setting:
    """On what to run."""

    device: str
    threads: int


def settings(devices: Sequence[str], threads: Sequence[int]) -> list[Setting]:
    """Every number of threads on a CPU; on an accelerator threads do not matter."""
    return [
        Setting(device, number)
        for device in devices
        for number in (threads if device == "cpu" else threads[:1])
    ]


def available_devices() -> list[str]:
    """The CPU, and a GPU if PyTorch can use one."""
    import torch

    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def measure_all(
    request: Request, runs: Sequence[Setting], lengths: Sequence[float], limits: Limits
) -> dict[str, Any]:
    """Measure everything; see the schema in ``cost``.

    Args:
        request: what to measure; its device and threads are those of the first run.
        runs: the headline run, then others of which time and memory are measured.
        lengths: of the curves in seconds; none for no curves.
        limits: of the curves.
    """
    first, *others = runs
    cost = measure(replace(request, device=first.device, threads=first.threads))
    cost["other_runs"] = []
    for setting in others:
        found = _time_and_memory(request, setting, request.seconds)
        cost["other_runs"].append({"device": setting.device, "threads": setting.threads, **found})
    cost["curves"] = []
    for setting in runs if lengths else []:
        curve_request = replace(
            request,
            repeats=min(CURVE_REPEATS, request.repeats),
            repeat_input=True,
            memory_limit_mb=limits.memory_mb,
            time_limit_s=START_S + 2 * (1 + CURVE_REPEATS) * limits.run_s,
        )
        label = f"curve, {setting.device}, {setting.threads} thread(s)"
        with tqdm(total=len(lengths), desc=label, unit="length", file=sys.stderr) as progress:

            def point(
                seconds: float,
                setting: Setting = setting,
                asked: Request = curve_request,
                progress: Any = progress,
            ) -> dict[str, Any]:
                found = _time_and_memory(asked, setting, seconds)
                progress.update()
                return found

            curve = measure_curve(point, lengths, limits)
        cost["curves"].append({"device": setting.device, "threads": setting.threads, **curve})
    return cost


def _time_and_memory(request: Request, setting: Setting, seconds: float | None) -> dict[str, Any]:
    found = measure(
        replace(
            request,
            seconds=seconds,
            device=setting.device,
            threads=setting.threads,
            parts=("memory", "rtf"),
        )
    )
    return {"rtf": found["rtf"], "memory_mb": found["memory_mb"]}
