"""Training curves, from ESPnet's checkpoint or from its logs.

ESPnet's reporter keeps ``stats[epoch][phase][key]`` (phase = train | valid) and saves it in
``checkpoint.pth``; it also logs one line ``12epoch results: [train] loss=..., [valid] ...`` per
epoch. The checkpoint is complete and exact and therefore read first.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# stats[epoch][phase][key]
Stats = dict[int, dict[str, dict[str, float]]]

_EPOCH_LINE = re.compile(r"(\d+)epoch results: (.*)")
_PHASE = re.compile(r"\[(\w+)\] ")
_ITEM = re.compile(r"([A-Za-z_]\w*)=(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|nan|-?inf)(?=,|$)")


@dataclass(frozen=True)
class Curves:
    """Epoch averages; ``values[phase][key]`` runs along ``epochs``, None where not logged."""

    source: Path
    epochs: list[int]
    values: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)

    def get(self, phase: str, key: str) -> list[float | None]:
        """One curve; empty if this phase never logged this key."""
        return self.values.get(phase, {}).get(key, [])

    def best(self, phase: str, key: str, mode: str = "min") -> tuple[int, float] | None:
        """Epoch and value of the best finite entry of a curve."""
        known = [
            (value, epoch)
            for epoch, value in zip(self.epochs, self.get(phase, key), strict=False)
            if value is not None
        ]
        if not known:
            return None
        value, epoch = (min if mode == "min" else max)(known)
        return epoch, value


def parse_log(text: str) -> Stats:
    """The epoch lines of an ESPnet training log; later lines of one epoch win."""
    stats: Stats = {}
    for match in _EPOCH_LINE.finditer(text):
        parts = _PHASE.split(match.group(2))
        # split() with one group: text, phase, text, phase, text, ...
        phases = {
            phase: {key: float(value) for key, value in _ITEM.findall(body.rstrip(", "))}
            for phase, body in zip(parts[1::2], parts[2::2], strict=True)
        }
        stats[int(match.group(1))] = phases
    return stats


def read_checkpoint(path: Path) -> Stats:
    """Reporter statistics of ``checkpoint.pth``, without running any code stored in it.

    Raises:
        pickle.UnpicklingError, RuntimeError, KeyError: not such a checkpoint, or it holds objects
            beyond plain data (an unusual scheduler, for instance).
    """
    import numpy as np
    import torch

    # A pickled NumPy scalar names its constructor (in a private module), a dtype and its class.
    scalar, _ = np.float64(0.0).__reduce__()[:2]
    plain: list[Any] = [scalar, np.dtype, datetime.timedelta]
    plain += [type(np.dtype(name)) for name in ("float64", "float32")]
    with torch.serialization.safe_globals(plain):
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {
        int(epoch): {
            phase: {
                key: float(value)
                for key, value in values.items()
                if isinstance(value, (int, float, np.number))
            }
            for phase, values in phases.items()
        }
        for epoch, phases in state["reporter"]["stats"].items()
    }


def to_curves(stats: Stats, source: Path) -> Curves:
    """Reorder statistics into one list per phase and key."""
    epochs = sorted(stats)
    keys: dict[str, dict[str, None]] = {}
    for epoch in epochs:
        for phase, values in stats[epoch].items():
            keys.setdefault(phase, {}).update(dict.fromkeys(values))
    curves = {
        phase: {
            key: [_finite(stats[epoch].get(phase, {}).get(key)) for epoch in epochs]
            for key in phase_keys
        }
        for phase, phase_keys in keys.items()
    }
    return Curves(source, epochs, curves)


def read_curves(exp: Path) -> Curves | None:
    """Training curves of an experiment folder, None if it holds no finished epoch."""
    checkpoint = exp / "checkpoint.pth"
    if checkpoint.is_file():
        with contextlib.suppress(pickle.UnpicklingError, RuntimeError, KeyError, EOFError):
            stats = read_checkpoint(checkpoint)
            if stats:
                return to_curves(stats, checkpoint)
    # A resumed run renames the older log to train.1.log, train.2.log, ...: newest last.
    merged: Stats = {}
    logs = sorted(exp.glob("train*.log"), key=_log_age, reverse=True)
    for log in logs:
        merged.update(parse_log(log.read_text(encoding="utf-8", errors="replace")))
    return to_curves(merged, logs[-1]) if merged else None


def _log_age(path: Path) -> int:
    number = path.stem.partition(".")[2]
    return int(number) if number.isdigit() else 0


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
