#!/usr/bin/env python3
"""Side-by-side speed, memory and MACs of separators, written to bench/RESULTS.md.

    python tools/bench.py                   # all groups of bench/systems.yaml
    python tools/bench.py --only "Time domain, 8 kHz" --rounds 15
    python tools/bench.py --resume true     # without groups measured before, with these versions

The systems of a group run in turn, round after round, in one process with one thread; of each turn
the CPU time of that thread is taken, and its ratio to the group's first system in the same round.
So another program on the machine disturbs all alike. Memory and MACs are measured in a process per
system. A peer whose toolkit is missing is left out and named. Each group is kept in
bench/results.json as soon as it is done, and RESULTS.md made anew from there.
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
from tqdm import tqdm

from espnet2_sepx.errors import UserError, run_cli
from espnet2_sepx.files import atomic_write, str2bool
from espnet2_sepx.profiling import environment
from espnet2_sepx.profiling.inputs import noise
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.memory import peak_memory
from espnet2_sepx.profiling.model import build_model, load_config, separate
from espnet2_sepx.profiling.rules import RULES_VERSION
from espnet2_sepx.profiling.table import format_macs

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = ROOT / "bench" / "systems.yaml"
FEWEST_ROUNDS = 3
INTRODUCTION = """# Side by side

Made by `make bench` from [`systems.yaml`](systems.yaml); do not edit. Systems of a table ran in
turn, round after round, in one process on one thread. RTF: median CPU time over length of the
input. Ratio: to the first row, median over rounds; then the smallest and the largest of a round.
MACs: column `all` of [our profiler](../docs/PROFILING.md). Memory: what a first run in a fresh
process adds, at its peak. Weights are random, input is noise.
"""


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


# ---- measuring -----------------------------------------------------------------------------------


def conditions(group: dict[str, Any], rounds: int) -> dict[str, Any]:
    """What a group's figures depend on; no date, since the machine is what matters."""
    facts = environment.describe()
    versions = {name: facts[name] for name in ("torch", "numpy", "python", "espnet")}
    versions["speechbrain"] = environment.version("speechbrain")
    return {
        "group": group,
        "rounds": rounds,
        "processor": f"{facts['processor']}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{os.cpu_count()} processors",
        "versions": versions,
        "rules": RULES_VERSION,
    }


def bench_group(registry: Path, group: dict[str, Any], rounds: int, max_s: float) -> dict[str, Any]:
    """Measure a group: ``rows`` by system, ``missing`` ones, and ``turns`` taken."""
    fs, mixture = group["fs"], noise(round(group["seconds"] * group["fs"]))
    systems, missing = [], []
    for name in group["systems"]:
        try:
            systems.append(build(registry, name, fs))
        except ImportError as error:
            missing.append(f"{name}: left out, {error}")
    times = time_in_turn(systems, mixture, rounds, max_s)
    rows = {}
    for system in tqdm(systems, desc="memory and MACs", unit="system"):
        pairs = zip(times[system.name], times[systems[0].name], strict=True)
        ratios = [own / reference for own, reference in pairs]
        rows[system.name] = {
            "parameters": sum(p.numel() for p in system.model.parameters()),
            "rtf": median(times[system.name]) / group["seconds"],
            "ratio": [median(ratios), min(ratios), max(ratios)],
            **details_in_own_process(registry, system.name, group),
        }
    return {"rows": rows, "missing": missing, "turns": len(times[systems[0].name])}


def time_in_turn(
    systems: list[System], mixture: torch.Tensor, rounds: int, max_s: float
) -> dict[str, list[float]]:
    """CPU seconds of each system in each round; fewer rounds if time is up."""
    times: dict[str, list[float]] = {system.name: [] for system in systems}
    begun = time.perf_counter()
    with torch.no_grad():
        for turn in range(rounds + 1):  # the first is for warming up
            if turn > FEWEST_ROUNDS and time.perf_counter() - begun > max_s:
                break
            for system in tqdm(systems, desc=f"round {turn} of {rounds}", unit="system"):
                start = time.thread_time()
                system.run(mixture)
                if turn:
                    times[system.name].append(time.thread_time() - start)
    return times


def details_in_own_process(registry: Path, name: str, group: dict[str, Any]) -> dict[str, float]:
    """Peak memory of a run beyond what is held before it, in MB, and MACs per second."""
    command = [sys.executable, __file__, "--registry", str(registry), "--details_of", name]
    command += ["--fs", str(group["fs"]), "--seconds", str(group["seconds"])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def print_details(args: argparse.Namespace) -> None:
    system = build(args.registry, args.details_of, args.fs)
    run = partial(system.run, noise(round(args.seconds * args.fs)))
    with torch.no_grad():
        memory = peak_memory(run)
    macs = count_macs(system.model, run).total.all / args.seconds
    print(json.dumps({"memory_mb": memory["peak"] - memory["baseline"], "macs": macs}))


# ---- reporting -----------------------------------------------------------------------------------


def markdown(results: dict[str, Any]) -> str:
    """All measured groups, each with what it was measured on."""
    return "\n".join([INTRODUCTION, *(_section(result) for result in results.values())])


def _section(result: dict[str, Any]) -> str:
    under = result["conditions"]
    lines = [
        f"## {under['group']['title']}, {under['group']['seconds']:g} s",
        "",
        "| system | parameters | MAC/s, all | RTF | time, ratio | from ... to | memory, run |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["rows"].items():
        middle, lowest, highest = row["ratio"]
        cells = [
            name,
            f"{row['parameters']:,}",
            format_macs(row["macs"]),
            f"{row['rtf']:.3f}",
            f"{middle:.2f}",
            f"{lowest:.2f} ... {highest:.2f}",
            f"{row['memory_mb']:.0f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {text}" for name, text in under["versions"].items() if text)
    if result["missing"]:
        lines += ["", *(f"- {text}" for text in result["missing"])]
    lines.append("")
    lines.append(
        f"{result['turns']} rounds. Machine: {under['processor']}; {versions}; "
        f"MAC rules {under['rules']}."
    )
    return "\n".join(lines) + "\n"


def write(store: Path, results: dict[str, Any], order: list[str]) -> None:
    """The store and, beside it, its Markdown; groups in the order of the registry."""
    results = {title: results[title] for title in order if title in results}
    with atomic_write(store) as stream:
        json.dump(results, stream, indent=1)
        stream.write("\n")
    with atomic_write(store.with_name("RESULTS.md")) as stream:
        stream.write(markdown(results))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="TITLE", help="groups (default: all)")
    parser.add_argument(
        "--resume",
        type=str2bool,
        default=False,
        help="true: keep what was measured on this machine with these versions and systems",
    )
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each system")
    parser.add_argument(
        "--max_s",
        type=float,
        default=120,
        help=f"start no more rounds after so long, beyond {FEWEST_ROUNDS} (default: 120 s)",
    )
    parser.add_argument("--registry", type=Path, default=REGISTRY, help="systems and groups")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "bench", help="folder of results.json and RESULTS.md"
    )
    parser.add_argument("--details_of", help=argparse.SUPPRESS)
    parser.add_argument("--fs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.details_of:
        print_details(args)
        return 0
    if args.rounds < 1:
        raise UserError(f"--rounds: must be at least 1, got {args.rounds}")
    groups = {group["title"]: group for group in read(args.registry)["groups"]}
    unknown = [title for title in args.only or () if title not in groups]
    if unknown:
        raise UserError(f"--only: unknown {unknown[0]!r}; known: {', '.join(map(repr, groups))}")
    store = args.out / "results.json"
    results = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    for number, title in enumerate(args.only or groups, 1):
        under = conditions(groups[title], args.rounds)
        print(f"== {title} ({number} of {len(args.only or groups)})", flush=True)
        if args.resume and results.get(title, {}).get("conditions") == under:
            print("kept from before", flush=True)
            continue
        found = bench_group(args.registry, groups[title], args.rounds, args.max_s)
        results[title] = {"conditions": under, **found}
        write(store, results, list(groups))
        print(_section(results[title]), flush=True)
    return 0


if __name__ == "__main__":
    run_cli(main)
