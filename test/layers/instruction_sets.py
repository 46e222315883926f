"""Which instruction sets the compiled functions can be tried for on this processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet2_sepx.layers.native import build

FLAGS = {"avx512": "avx512f", "avx2": "avx2", "baseline": ""}
_CPUINFO = Path("/proc/cpuinfo")
_FOUND = _CPUINFO.read_text(encoding="utf-8") if _CPUINFO.exists() else ""


def _instruction_set(name: str):
    lacking = FLAGS[name] not in _FOUND
    return pytest.param(name, marks=pytest.mark.skipif(lacking, reason=f"no {name} here"))


every_instruction_set = pytest.mark.parametrize(
    "isa", [_instruction_set(name) for name in build.INSTRUCTION_SETS]
)
