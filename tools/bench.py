#!/usr/bin/env python3
"""Side-by-side speed, memory and MACs of separators, written to bench/RESULTS.md.

    python tools/bench.py                           # all groups of bench/systems.yaml
    python tools/bench.py --groups "Time domain, 8 kHz" --rounds 15

The systems of a group run in turn, round after round, in one process with one thread; of each turn
the CPU time of that thread is taken, and its ratio to the group's first system in the same round.
So another program on the machine disturbs all alike. Memory is measured in a process per system. A
peer whose toolkit is missing is left out and named. Speed of TF-MoE in detail: bench_tf_moe.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import bench_peers
import torch
import yaml

from espnet2_sepx.errors import UserError, run_cli
from espnet2_sepx.files import atomic_write
from espnet2_sepx.profiling import environment
from espnet2_sepx.profiling.inputs import noise
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.memory import peak_memory
from espnet2_sepx.profiling.model import build_model, load_config, separate
from espnet2_sepx.profiling.rules import RULES_VERSION
from espnet2_sepx.profiling.table import format_macs

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = ROOT / "bench" / "systems.yaml"


@dataclass
class System:
    """One competitor, ready to run."""

    name: str
    model: torch.nn.Module
    run: Callable[[torch.Tensor], Any]


def build(registry: Path, name: str, fs: int) -> System:
    """A system of the registry.

    Raises:
        ImportError: the toolkit of a peer is not installed.
    """
    systems = read(registry)["systems"]
    if name not in systems:
        raise UserError(f"{registry}: no system {name!r}; known: {', '.join(systems)}")
    entry = systems[name]
    if "peer" in entry:
        model = getattr(bench_peers, entry["peer"])()
        return System(name, model, model)
    config = ROOT / entry["config"]
    model = build_model(load_config(config), config.name)
    return System(name, model, lambda mixture: separate(model, mixture, fs))


def read(registry: Path) -> dict[str, Any]:
    return yaml.safe_load(registry.read_text(encoding="utf-8"))


def bench_group(registry: Path, group: dict[str, Any], rounds: int) -> list[str]:
    """Measure a group; its section of the results."""
    fs, mixture = group["fs"], noise(round(group["seconds"] * group["fs"]))
    systems, missing = [], []
    for name in group["systems"]:
        try:
            systems.append(build(registry, name, fs))
        except ImportError as error:
            missing.append(f"- {name}: left out, {error}")
    times: dict[str, list[float]] = {system.name: [] for system in systems}
    with torch.no_grad():
        for turn in range(rounds + 1):  # the first is for warming up
            for system in systems:
                start = time.thread_time()
                system.run(mixture)
                if turn:
                    times[system.name].append(time.thread_time() - start)
    lines = [
        f"## {group['title']}, {group['seconds']:g} s",
        "",
        "| system | parameters | MAC/s, all | RTF | time, ratio | from ... to | memory, run |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for system in systems:
        pairs = zip(times[system.name], times[systems[0].name], strict=True)
        ratios = [own / reference for own, reference in pairs]
        macs = count_macs(system.model, partial(system.run, mixture)).total.all
        cells = [
            system.name,
            f"{sum(p.numel() for p in system.model.parameters()):,}",
            format_macs(macs / group["seconds"]),
            f"{median(times[system.name]) / group['seconds']:.3f}",
            f"{median(ratios):.2f}",
            f"{min(ratios):.2f} ... {max(ratios):.2f}",
            f"{memory_in_own_process(registry, system.name, group):.0f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return [*lines, *([""] if missing else []), *missing, ""]


def memory_in_own_process(registry: Path, name: str, group: dict[str, Any]) -> float:
    """Peak memory of a run beyond what is held before it, in MB."""
    command = [sys.executable, __file__, "--registry", str(registry), "--memory_of", name]
    command += ["--fs", str(group["fs"]), "--seconds", str(group["seconds"])]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found["peak"] - found["baseline"]


def print_memory(args: argparse.Namespace) -> None:
    system = build(args.registry, args.memory_of, args.fs)
    mixture = noise(round(args.seconds * args.fs))
    with torch.no_grad():
        print(json.dumps(peak_memory(partial(system.run, mixture))))


def header(rounds: int) -> list[str]:
    """What was done, on what machine; no date, since the machine is what matters."""
    facts = environment.describe()
    packages = ", ".join(f"{name} {facts[name]}" for name in ("torch", "numpy", "python", "espnet"))
    speechbrain = environment.version("speechbrain")
    return [
        "# Side by side",
        "",
        "Made by `make bench` from [`systems.yaml`](systems.yaml); do not edit. Systems of a table "
        f"ran in turn for {rounds} rounds in one process on one thread. RTF: median CPU time over "
        "length of the input. Ratio: to the first row, median over rounds; then the smallest and "
        "the largest of a round. Memory: what a first run in a fresh process adds, at its peak. "
        "Weights are random, input is noise.",
        "",
        f"Machine: {facts['processor']}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{os.cpu_count()} processors; {packages}, speechbrain {speechbrain or 'not installed'}; "
        f"MAC rules {RULES_VERSION}.",
        "",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each system")
    parser.add_argument("--groups", nargs="+", help="titles of groups (default: all)")
    parser.add_argument("--registry", type=Path, default=REGISTRY, help="systems and groups")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "RESULTS.md")
    parser.add_argument("--memory_of", help="only print the memory of this system, as JSON")
    parser.add_argument("--fs", type=int, help="with --memory_of: sampling rate")
    parser.add_argument("--seconds", type=float, help="with --memory_of: length of the input")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.memory_of:
        print_memory(args)
        return 0
    groups = {group["title"]: group for group in read(args.registry)["groups"]}
    unknown = [title for title in args.groups or () if title not in groups]
    if unknown:
        raise UserError(f"--groups: unknown {unknown[0]!r}; known: {', '.join(map(repr, groups))}")
    lines = header(args.rounds)
    for title in args.groups or groups:
        print(f"== {title}", flush=True)
        lines += bench_group(args.registry, groups[title], args.rounds)
    with atomic_write(args.out) as stream:
        stream.write("\n".join(lines).rstrip() + "\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
