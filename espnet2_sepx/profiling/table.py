"""Markdown of one cost, and of several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from espnet2_sepx.errors import UserError
from espnet2_sepx.profiling.tree import subtotal, with_subtotals

# What two systems must share before their figures stand in one table.
CONDITIONS = {"fs": "sampling rate", "seconds": "input length", "rules": "version of the MAC rules"}


def cost_markdown(cost: Mapping[str, Any]) -> str:
    """The whole measurement of one system: headline figures, then the tree of its parts."""
    rtf, memory, macs = cost["rtf"], cost["memory_mb"], cost["macs_per_second"]
    facts = cost["environment"]
    lines = [
        f"# Cost of {cost['config']}",
        "",
        f"Separator `{cost['separator']}`, {cost['seconds']:g} s of {cost['input']} "
        f"at {cost['fs']} Hz.",
        "",
        *_table(
            ["", "value"],
            [
                ["parameters", f"{cost['parameters']['total']:,}"],
                ["MAC/s, layers with weights", _macs(macs["weights"])],
                ["MAC/s, all", _macs(macs["all"])],
                ["elementwise multiplications/s (beside them)", _macs(macs["elementwise"])],
                [
                    f"real-time factor, {_threads(rtf['threads'])}, median of {rtf['repeats']}",
                    f"{rtf['median']:.3f} ({rtf['min']:.3f} to {rtf['max']:.3f})",
                ],
                ["algorithmic latency", _latency(cost["latency"])],
                [
                    "memory, peak / before the run",
                    f"{memory['peak']:.0f} MB / {memory['baseline']:.0f} MB",
                ],
            ],
        ),
        "",
        *_parts(cost),
        "",
        f"Measured on {facts.get('accelerator') or facts['processor']}; torch {facts['torch']}, "
        f"numpy {facts['numpy']}, Python {facts['python']}, espnet {facts['espnet']}; "
        f"MAC rules {cost['rules']}.",
    ]
    if macs["uncounted"]:
        names = ", ".join(f"`{name}` x {calls}" for name, calls in macs["uncounted"].items())
        lines += ["", f"**Not counted**, for want of a rule: {names}."]
    return "\n".join(lines) + "\n"


def compare_markdown(costs: Sequence[Mapping[str, Any]], force: bool = False) -> str:
    """One row per system; ``UserError`` if the conditions differ, unless ``force``.

    With ``force`` every row states its own conditions.
    """
    differing = [key for key in CONDITIONS if len({cost[key] for cost in costs}) > 1]
    if differing and not force:
        key = differing[0]
        values = ", ".join(f"{cost['config']} {cost[key]}" for cost in costs)
        raise UserError(
            f"--compare: the {CONDITIONS[key]} differs ({values}); measure again under equal "
            "conditions, or add --force true"
        )
    header = ["system", "parameters", "MAC/s weights", "MAC/s all", "RTF", "threads", "peak MB"]
    rows = [[*_row(cost), *(f"{cost[key]}" for key in differing)] for cost in costs]
    lines = _table([*header, *(CONDITIONS[key] for key in differing)], rows)
    common = ", ".join(
        f"{text} {costs[0][key]}" for key, text in CONDITIONS.items() if key not in differing
    )
    machines = sorted({cost["environment"]["processor"] for cost in costs})
    return "\n".join([*lines, "", f"{common}; RTF measured on {' and '.join(machines)}."]) + "\n"


def _row(cost: Mapping[str, Any]) -> list[str]:
    macs = cost["macs_per_second"]
    return [
        cost["config"],
        f"{cost['parameters']['total'] / 1e6:.2f} M",
        _macs(macs["weights"]),
        _macs(macs["all"]),
        f"{cost['rtf']['median']:.3f}",
        str(cost["rtf"]["threads"]),
        f"{cost['memory_mb']['peak']:.0f}",
    ]


def _parts(cost: Mapping[str, Any]) -> list[str]:
    parameters = cost["parameters"]["by_part"]
    work = cost["macs_per_second"]["by_part"]
    columns = {key: {part: row[key] for part, row in work.items()} for key in ("weights", "all")}
    rows = []
    for part in with_subtotals([*work, *(part for part in parameters if part not in work)]):
        sizes = [subtotal(parameters, part), *(subtotal(columns[key], part) for key in columns)]
        if sizes[-1]:  # parts without products only count in the sums above them
            name = "&emsp;" * part.count(".") + part.rpartition(".")[2]
            rows.append([name, f"{sizes[0]:,}", *map(_macs, sizes[1:])])
    return _table(["part", "parameters", "MAC/s weights", "MAC/s all"], rows)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """First column left, the others right."""
    return [
        f"| {' | '.join(header)} |",
        f"|---|{'---:|' * (len(header) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _latency(latency: Mapping[str, float | None]) -> str:
    milliseconds = latency["algorithmic_ms"]
    return "the whole input" if milliseconds is None else f"{milliseconds:.4g} ms"


def _macs(value: float) -> str:
    """With the unit that leaves one to three digits before the point."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.{3 if unit == 'G' else 1}f} {unit}"
    return f"{value:.0f}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
