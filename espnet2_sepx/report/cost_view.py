"""The cost section of the page, from ``cost.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet2_sepx.profiling.cost import CONVENTIONS
from espnet2_sepx.profiling.curve import run_seconds
from espnet2_sepx.profiling.tree import subtotal, with_subtotals
from espnet2_sepx.report.charts import Chart, Series, line_chart
from espnet2_sepx.report.results import UNKNOWN, quantity

FIGURES = ("mean", "p5", "p50", "p95")


def cost_section(cost: dict[str, Any]) -> dict[str, Any]:
    """Rows of the parts as a tree; parts without products count in the sums above them only."""
    macs = cost.get("macs_per_second") or {}
    work = macs.get("by_part") or {}
    columns = {
        "parameters": (cost.get("parameters") or {}).get("by_part") or {},
        "weights": {part: row.get("weights") or 0 for part, row in work.items()},
        "all": {part: row.get("all") or 0 for part, row in work.items()},
    }
    total = {
        "parameters": (cost.get("parameters") or {}).get("total"),
        "weights": macs.get("weights"),
        "all": macs.get("all"),
    }
    rows = []
    for part in with_subtotals([*work, *(part for part in columns["parameters"])]):
        sums = {name: subtotal(values, part) for name, values in columns.items()}
        if sums["all"]:
            shares = {name: 100 * sums[name] / (total[name] or 1) for name in sums}
            rows.append(
                {
                    "part": part.rpartition(".")[2],
                    "depth": part.count("."),
                    "cells": _cost_cells(sums),
                    "size_share": min(100.0, shares["parameters"]),
                    "mac_share": min(100.0, shares["all"]),
                }
            )
    return {
        "rows": rows,
        "total": _cost_cells(total),
        "facts": _cost_facts(cost),
        "uncounted": macs.get("uncounted") or {},
        "conditional": _conditional(cost.get("conditional")),
        "charts": _curves(cost.get("curves") or []),
    }


def _cost_cells(values: Mapping[str, float | None]) -> dict[str, str]:
    size = values["parameters"]
    return {
        "parameters": UNKNOWN if size is None else f"{size:,.0f}",
        "weights": quantity(values["weights"]),
        "all": quantity(values["all"]),
    }


def _cost_facts(cost: dict[str, Any]) -> list[tuple[str, str]]:
    rtf, memory = cost.get("rtf") or {}, cost.get("memory_mb") or {}
    macs, environment = cost.get("macs_per_second") or {}, cost.get("environment") or {}
    facts = []
    if cost.get("seconds") and cost.get("fs"):
        source = f" of {Path(cost['input']).name}" if cost.get("input") else ""
        facts.append(("Input", f"{cost['seconds']:g} s{source} at {cost['fs']} Hz"))
    for name, title in (
        ("executed", "MACs per second, executed"),
        ("theoretical", "MACs per second, if nothing were skipped"),
        *((name, f"MACs per second, as {name} counts") for name in CONVENTIONS),
        ("elementwise", "Elementwise products per second"),
    ):
        if macs.get(name) is not None:
            facts.append((title, quantity(macs[name])))
    if rtf.get("median") is not None:
        spread = ""
        if rtf.get("min") is not None and rtf.get("max") is not None:
            spread = f" ({rtf['min']:.3g} to {rtf['max']:.3g} in {rtf.get('repeats', '?')} runs)"
        facts.append(("Real-time factor", f"{rtf['median']:.3g}{spread}"))
        facts.append(("CPU threads", str(rtf.get("threads", UNKNOWN))))
    for run in cost.get("other_runs") or []:
        where = f"{run['device']}, {run['threads']} threads"
        facts.append((f"Real-time factor, {where}", f"{run['rtf']['median']:.3g}"))
    if memory.get("peak") is not None:
        over = ""
        if memory.get("baseline") is not None:
            over = f" ({memory['baseline']:.0f} MB before the run)"
        facts.append(("Peak memory", f"{memory['peak']:.0f} MB{over}"))
    if "latency" in cost:
        look_ahead = (cost["latency"] or {}).get("algorithmic_ms")
        whole = "the whole input"
        facts.append(("Latency", whole if look_ahead is None else f"{look_ahead:.3g} ms"))
    for curve in cost.get("curves") or []:
        if curve["slope"]:
            growth = (f"{kind} n^{curve['slope'][kind]:.2f}" for kind in ("time", "memory"))
            facts.append((f"Growth with length, {curve['threads']} threads", ", ".join(growth)))
    facts += [(name.capitalize(), str(value)) for name, value in environment.items() if value]
    if cost.get("rules"):
        facts.append(("Counting rules", f"version {cost['rules']}"))
    return facts


def _conditional(conditional: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Rows of the cost over a test set; None if the work does not depend on the input."""
    if not conditional:
        return None
    rows = [
        (f"{kind}, whole utterances", conditional["seconds"], conditional[kind])
        for kind in ("theoretical", "executed")
    ]
    rows += [
        (f"executed, {name.replace('_', ' ')}", entry["seconds"], entry)
        for name, entry in conditional["by_segment"].items()
    ]
    return {
        "utterances": conditional["utterances"],
        "rows": [
            (title, f"{seconds:.1f}", *(quantity(entry.get(key)) for key in FIGURES))
            for title, seconds, entry in rows
        ],
    }


def _curves(curves: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Time and memory of a run over the length of the input."""
    drawn = [curve for curve in curves if len(curve["points"]) > 1]
    if not drawn:
        return []

    def series(value: Callable[[dict[str, Any]], float]) -> list[Series]:
        return [
            Series(
                f"{curve['device']}, {curve['threads']} threads",
                [point["seconds"] for point in curve["points"]],
                [value(point) for point in curve["points"]],
                f"s{number}",
            )
            for number, curve in enumerate(drawn, start=1)
        ]

    def grown(point: dict[str, Any]) -> float:
        return point["memory_mb"]["peak"] - point["memory_mb"]["baseline"]

    return [
        Chart(title, line_chart(title, series(value), "length of the input (s)", unit, True))
        for title, unit, value in (
            ("Computing time of a run", "s", run_seconds),
            ("Memory of a run", "MB", grown),
        )
    ]
