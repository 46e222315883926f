"""What the speed tools have in common: taking turns, tables, and what becomes of them.

Tables are printed; with ``--keep`` they also go to bench/speed.json, from which
tools/update_readme.py makes docs/SPEED.md and a table of the README.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from espnet2_sepx.errors import UserError
from espnet2_sepx.files import atomic_write

STORE = Path(__file__).resolve().parent.parent / "bench" / "speed.json"
Times = dict[str, list[float]]


def measure(variants: dict[str, Callable[[], object]], rounds: int) -> Times:
    """CPU seconds of each variant in each round, in turn, after a round of warming up."""
    times: Times = defaultdict(list)
    for turn in range(rounds + 1):
        for name, run in variants.items():
            start = time.thread_time()
            run()
            if turn:
                times[name].append(time.thread_time() - start)
    return times


def argument_parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="measurements of each variant")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="put the tables into bench/speed.json, for docs/SPEED.md",
    )
    return parser


class Report:
    """The tables of one run of a tool."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from espnet2_sepx.layers.kernels import onednn_linear
        from espnet2_sepx.profiling.environment import processor

        self.tool, self.keep, self.rounds = Path(sys.argv[0]).stem, args.keep, args.rounds
        self.under = (
            f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, PyTorch {torch.__version__}"
        )
        print(f"{self.under}; {onednn_linear()[1]}")

    def table(
        self,
        title: str,
        columns: dict[str, str],
        rows: dict[str, Sequence[float | None]],
        note: str = "",
        rounds: int | None = None,
    ) -> None:
        """Print a table, and keep it if that is wanted.

        Args:
            title: unique within the tool.
            columns: name -> format of the numbers.
            rows: name -> numbers, None where there is none.
            note: a sentence below.
            rounds: how many there were, if others than ``--rounds``.
        """
        made = {
            "columns": columns,
            "rows": {name: list(values) for name, values in rows.items()},
            "note": note,
            "under": f"{self.under}; medians of {rounds or self.rounds} rounds",
        }
        cells = [["", *columns], *([name, *row] for name, row in _formatted(made).items())]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"\n{title}")
        for first, *others in cells:
            padded = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
            print("  ".join((f"  {first:{widths[0]}}", *padded)), flush=True)
        if note:
            print(f"  {note}")
        if self.keep:
            stored = load()
            stored.setdefault(self.tool, {})[title] = made
            with atomic_write(STORE) as stream:
                json.dump(stored, stream, indent=1)
                stream.write("\n")

    def times(self, title: str, times: Times, base: str, note: str = "") -> None:
        """A table of times, with ratios of medians to those of ``base``."""
        rows = {
            name: [1e3 * median(values), 1e3 * min(values), median(values) / median(times[base])]
            for name, values in times.items()
        }
        columns = {"median, ms": ".1f", "least, ms": ".1f", f"over {base}": ".3f"}
        self.table(title, columns, rows, note, rounds=len(times[base]))


def check(name: str, value: float, target: float | None, at_least: bool = False) -> None:
    """Print a figure, and whether it is what it should be."""
    verdict = ""
    if target is not None:
        met = value >= target if at_least else value <= target
        verdict = f"  target {'>=' if at_least else '<='} {target:g}: {'met' if met else 'MISSED'}"
    print(f"  {name}: {value:.3f}{verdict}", flush=True)


def load() -> dict[str, dict[str, Any]]:
    """Tool -> title -> table."""
    return json.loads(STORE.read_text(encoding="utf-8")) if STORE.is_file() else {}


def value(tool: str, title: str, row: str, column: str) -> float:
    """One number of a kept table."""
    try:
        table = load()[tool][title]
        return table["rows"][row][list(table["columns"]).index(column)]
    except (KeyError, ValueError) as error:
        raise UserError(f"{STORE}: no {error} in {tool}, {title!r}; run it with --keep") from error


def markdown(tool: str) -> str:
    """The kept tables of a tool."""
    tables = load().get(tool)
    if not tables:
        raise UserError(f"{STORE}: nothing from {tool}; run tools/{tool}.py --keep")
    lines = []
    for title, table in tables.items():
        lines += [f"### {title}", "", f"| | {' | '.join(table['columns'])} |"]
        lines.append("|---" + "|---:" * len(table["columns"]) + "|")
        lines += [f"| {name} | {' | '.join(row)} |" for name, row in _formatted(table).items()]
        lines += ["", " ".join(filter(None, (table["note"], f"({table['under']}.)"))), ""]
    return "\n".join(lines).rstrip()


def _formatted(table: dict[str, Any]) -> dict[str, list[str]]:
    formats = table["columns"].values()
    return {
        name: ["" if n is None else f"{n:{f}}" for n, f in zip(row, formats, strict=True)]
        for name, row in table["rows"].items()
    }
