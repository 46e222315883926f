"""Peak memory of one call, meant to run in a process of its own.

On a CPU this is the resident set of the whole process. ``ru_maxrss`` alone would not do: Linux
hands it from a parent to the child it starts, and loading a model may peak higher than running it.
So the kernel's high-water mark is reset first where that is allowed.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MEGABYTE = 1e6


def peak_memory(run: Callable[[], Any], device: str = "cpu") -> dict[str, float]:
    """Memory before ``run`` and at its highest while it runs, in MB (10^6 bytes).

    Returns:
        ``baseline`` (everything loaded, nothing run) and ``peak``. For a CUDA device both are what
        PyTorch's allocator handed out there.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        baseline = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        _reset_high_water_mark()
        baseline = _status("VmRSS") or _highest()
        run()
        peak = _status("VmHWM") or _highest()
    return {"peak": peak / MEGABYTE, "baseline": baseline / MEGABYTE}


def _reset_high_water_mark() -> None:
    """Linux: start the mark afresh. Elsewhere, or without permission, it includes the loading."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(key: str) -> int | None:
    """A line of Linux' ``/proc/self/status`` in bytes; None on other systems."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    return None


def _highest() -> int:
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest
