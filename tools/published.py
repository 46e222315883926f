#!/usr/bin/env python3
"""Published parameters and MACs of bench/systems.yaml beside our counts by every convention.

    python tools/published.py                       # count all, write bench/published.json
    python tools/published.py --systems "SkiM (ESPnet)"

The tables in docs/PROFILING.md and README.md are made from that file by tools/update_readme.py.
Counting takes minutes (a large model is traced), so the numbers are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from espnet2_sepx.errors import UserError, run_cli
from espnet2_sepx.files import atomic_write
from espnet2_sepx.profiling.cost import CONVENTIONS, Request, measure
from espnet2_sepx.profiling.table import format_macs

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = ROOT / "bench" / "systems.yaml"
COUNTS = ROOT / "bench" / "published.json"
COLUMNS = ("weights", "all", *CONVENTIONS)
TOLERANCE = 0.02


def published() -> dict[str, dict[str, Any]]:
    """Systems that have published figures."""
    systems = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))["systems"]
    return {name: entry for name, entry in systems.items() if entry.get("published")}


def count(config: str, seconds: float) -> dict[str, Any]:
    """Parameters and MACs per second of a configuration by every convention."""
    request = Request(str(ROOT / config), seconds=seconds, parts=("macs",))
    cost = measure(request)
    macs = cost["macs_per_second"]
    return {
        "fs": cost["fs"],
        "seconds": seconds,
        "parameters": cost["parameters"]["total"],
        **{column: macs[column] for column in COLUMNS},
    }


def reproduced_by(counts: dict[str, Any], macs: float) -> dict[str, float]:
    """Conventions within the tolerance and their relative errors, the nearest first."""
    errors = {c: counts[c] / macs - 1 for c in COLUMNS if counts[c] is not None}
    near = [column for column in errors if abs(errors[column]) <= TOLERANCE]
    return {column: errors[column] for column in sorted(near, key=lambda c: abs(errors[c]))}


def table() -> str:
    """Markdown of published figures beside our counts.

    Raises:
        UserError: something was not counted, or a figure has neither convention nor remark.
    """
    stored = json.loads(COUNTS.read_text(encoding="utf-8"))
    header = ["system, source", "parameters: printed", "ours", "MAC/s: printed", *COLUMNS]
    rows = [
        f"| {' | '.join([*header, 'reproduced by'])} |",
        f"|---|{'---:|' * (len(header) - 1)}---|",
    ]
    for name, entry in published().items():
        for figure in entry["published"]:
            rows.append(_row(name, figure, _counts(stored, name, figure["seconds"])))
    return "\n".join(rows) + f"\n\nMAC rules {stored['rules']}; counted on the stated length."


def cost_table() -> str:
    """Markdown of parameters and MACs of the systems that are also timed, one row each."""
    stored = json.loads(COUNTS.read_text(encoding="utf-8"))
    groups = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))["groups"]
    timed = {name for group in groups for name in group["systems"]}
    rows = [
        "| system | input | parameters | MAC/s, `weights` | `all` |",
        "|---|---|---:|---:|---:|",
    ]
    for name, entry in published().items():
        if name in timed:
            counts = _counts(stored, name, entry["published"][0]["seconds"])
            cells = [
                f"[{name}]({entry['config']})",
                f"{counts['seconds']:g} s, {counts['fs'] / 1000:g} kHz",
                f"{counts['parameters']:,}",
                *(format_macs(counts[column]) for column in ("weights", "all")),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _counts(stored: dict[str, Any], name: str, seconds: float) -> dict[str, Any]:
    for counts in stored["systems"].get(name, []):
        if counts["seconds"] == seconds:
            return counts
    raise UserError(f"{COUNTS}: lacks {name!r} at {seconds:g} s; run tools/published.py")


def _row(name: str, figure: dict[str, Any], counts: dict[str, Any]) -> str:
    printed = float(figure["macs"])
    near = reproduced_by(counts, printed)
    if not near and "remark" not in figure:
        raise UserError(f"{REGISTRY}: {name!r}: no convention gives {printed:g}; add a remark")
    verdict = ", ".join(f"`{column}` {100 * error:+.1f} %" for column, error in near.items())
    parameters = figure.get("parameters")
    cells = [
        f"{name}: {figure['in']}, {figure['seconds']:g} s",
        f"{float(parameters) / 1e6:g} M" if parameters else "",
        f"{counts['parameters']:,}",
        f"{printed / 1e9:g} G",
        *(format_macs(counts[column]) for column in COLUMNS),
        verdict or f"none: {figure['remark']}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", nargs="+", help="count only these anew (default: all)")
    args = parser.parse_args()
    systems = published()
    unknown = [name for name in args.systems or () if name not in systems]
    if unknown:
        raise UserError(f"--systems: {unknown[0]!r} has no published figures in {REGISTRY}")
    from espnet2_sepx.profiling.rules import RULES_VERSION  # imports PyTorch

    stored: dict[str, Any] = {"rules": RULES_VERSION, "systems": {}}
    if COUNTS.is_file():
        old = json.loads(COUNTS.read_text(encoding="utf-8"))
        if old["rules"] == RULES_VERSION:
            kept = {name: counts for name, counts in old["systems"].items() if name in systems}
            stored["systems"] = kept
    for name in args.systems or systems:
        lengths = sorted({float(figure["seconds"]) for figure in systems[name]["published"]})
        counts = [count(systems[name]["config"], seconds) for seconds in lengths]
        stored["systems"][name] = counts
        with atomic_write(COUNTS) as stream:
            json.dump(stored, stream, indent=1, sort_keys=True)
            stream.write("\n")
        print(name, counts)
    return 0


if __name__ == "__main__":
    run_cli(main)
