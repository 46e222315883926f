"""What a measurement ran on: figures of time and memory mean nothing without it."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path


def describe(device: str = "cpu") -> dict[str, str | None]:
    """Processor and versions, as they go into ``cost.json``; None for what is not installed."""
    import numpy
    import torch

    import espnet2_sepx

    facts: dict[str, str | None] = {
        "processor": processor(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "espnet": version("espnet"),
        "espnet2_sepx": espnet2_sepx.__version__,
    }
    if device.startswith("cuda"):
        facts["accelerator"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """Of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
