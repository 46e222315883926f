"""Markdown of one cost, and of several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from espnet2_sepx.errors import UserError
from espnet2_sepx.profiling.cost import CONVENTIONS
from espnet2_sepx.profiling.curve import in_words
from espnet2_sepx.profiling.tree import subtotal, with_subtotals

# What two systems must share before their figures stand in one table.
CONDITIONS = {"fs": "sampling rate", "seconds": "input length", "rules": "version of the MAC rules"}
COLUMNS = ("weights", "all", *CONVENTIONS)
"""Of the tree of parts."""
REASONS = 3
"""Parts named to explain a convention."""


def cost_markdown(cost: Mapping[str, Any]) -> str:
    """The whole measurement of one system: headline figures, then the tree of its parts."""
    facts, macs = cost["environment"], cost["macs_per_second"]
    lines = [
        f"# Cost of {cost['config']}",
        "",
        f"Separator `{cost['separator']}`, {cost['seconds']:g} s of {cost['input']} "
        f"at {cost['fs']} Hz.",
        "",
        *_table(["", "value"], _headline(cost)),
        "",
        *_parts(cost),
        "",
        *_conventions(cost),
        *_conditional(cost.get("conditional")),
        *_runs(cost),
        *_curves(cost),
        f"Measured on {machine(cost)}; torch {facts['torch']}, "
        f"numpy {facts['numpy']}, Python {facts['python']}, espnet {facts['espnet']}; "
        f"MAC rules {cost['rules']}.",
    ]
    if macs["uncounted"]:
        names = ", ".join(f"`{name}` x {calls}" for name, calls in macs["uncounted"].items())
        lines += ["", f"**Not counted**, for want of a rule: {names}."]
    return "\n".join(lines) + "\n"


def machine(cost: Mapping[str, Any]) -> str:
    """The processor or accelerator that ran."""
    facts = cost["environment"]
    return facts.get("accelerator") or facts["processor"]


def _headline(cost: Mapping[str, Any]) -> list[list[str]]:
    rtf, memory, macs = cost["rtf"], cost["memory_mb"], cost["macs_per_second"]
    rows = [
        ["parameters", f"{cost['parameters']['total']:,}"],
        ["MAC/s, layers with weights", format_macs(macs["weights"])],
        ["MAC/s, all", format_macs(macs["all"])],
    ]
    if macs["theoretical"] != macs["all"]:
        rows.append(["MAC/s, if nothing were skipped", format_macs(macs["theoretical"])])
    rows += [
        ["elementwise multiplications/s (beside them)", format_macs(macs["elementwise"])],
        [
            f"real-time factor, {_threads(rtf['threads'])}, median of {rtf['repeats']}",
            f"{rtf['median']:.3f} ({rtf['min']:.3f} to {rtf['max']:.3f})",
        ],
        ["look-ahead of the output", _latency(cost["latency"])],
    ]
    stream = cost.get("streaming")
    if stream and "problem" in stream:
        rows.append(["streaming", f"fails: {stream['problem']}"])
    elif stream:
        step = stream["ms_per_chunk"]
        rows += [
            ["streaming, latency", f"{stream['latency_ms']:.4g} ms"],
            [
                f"streaming, time per chunk of {stream['chunk_ms']:g} ms, median / 95 % / longest",
                f"{step['median']:.2f} / {step['p95']:.2f} / {step['max']:.2f} ms",
            ],
            ["streaming, real-time factor", f"{stream['rtf']:.3f}"],
            ["streaming, difference to offline", f"{stream['difference_to_offline']:.1e}"],
        ]
    size = f"{memory['peak']:.0f} MB / {memory['baseline']:.0f} MB"
    return [*rows, ["memory, peak / before the run", size]]


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
    header = ["system", "parameters", *(f"MAC/s {column}" for column in COLUMNS)]
    header += ["executed, overlap", "RTF", "threads", "peak MB", "growth of time", "latency"]
    rows = [[*_row(cost), *(f"{cost[key]}" for key in differing)] for cost in costs]
    lines = _table([*header, *(CONDITIONS[key] for key in differing)], rows)
    common = ", ".join(
        f"{text} {costs[0][key]}" for key, text in CONDITIONS.items() if key not in differing
    )
    machines = sorted({machine(cost) for cost in costs})
    return "\n".join([*lines, "", f"{common}; RTF measured on {' and '.join(machines)}."]) + "\n"


def _row(cost: Mapping[str, Any]) -> list[str]:
    macs = cost["macs_per_second"]
    overlap = ((cost.get("conditional") or {}).get("by_segment") or {}).get("overlap") or {}
    slope = next((curve["slope"] for curve in cost["curves"] if curve["slope"]), None)
    return [
        cost["config"],
        f"{cost['parameters']['total'] / 1e6:.2f} M",
        *(format_macs(macs[column]) for column in COLUMNS),
        format_macs(overlap.get("mean")),
        f"{cost['rtf']['median']:.3f}",
        str(cost["rtf"]["threads"]),
        f"{cost['memory_mb']['peak']:.0f}",
        f"n^{slope['time']:.2f}" if slope else "-",
        _latency(cost["latency"]),
    ]


def _parts(cost: Mapping[str, Any]) -> list[str]:
    parameters = cost["parameters"]["by_part"]
    work = cost["macs_per_second"]["by_part"]
    columns = {key: {part: row[key] for part, row in work.items()} for key in COLUMNS}
    problems = cost["macs_per_second"]["problems"]
    rows = []
    for part in with_subtotals([*work, *(part for part in parameters if part not in work)]):
        sums = {key: subtotal(values, part) for key, values in columns.items()}
        if any(sums.values()):  # parts without products only count in the sums above them
            name = "&emsp;" * part.count(".") + part.rpartition(".")[2]
            cells = (format_macs(None if key in problems else sums[key]) for key in COLUMNS)
            rows.append([name, f"{subtotal(parameters, part):,}", *cells])
    return _table(["part", "parameters", *(f"MAC/s {column}" for column in COLUMNS)], rows)


def _conventions(cost: Mapping[str, Any]) -> list[str]:
    """What published tools would say, and where the difference lies."""
    macs = cost["macs_per_second"]
    lines = []
    for name in CONVENTIONS:
        if name in macs["problems"]:
            lines.append(f"- `{name}`: cannot count this model ({macs['problems'][name]})")
        else:
            lines.append(f"- `{name}` {format_macs(macs[name])}: {_difference(macs, name)}")
    return ["Published conventions against `all`:", "", *lines, ""]


def _difference(macs: Mapping[str, Any], name: str) -> str:
    """The parts that differ most, and the sum of the others."""
    differences = {part: row[name] - row["all"] for part, row in macs["by_part"].items()}
    largest = sorted(differences, key=lambda part: -abs(differences[part]))[:REASONS]
    largest = [part for part in largest if abs(differences[part]) > 1e-3 * macs["all"]]
    rest = sum(value for part, value in differences.items() if part not in largest)
    said = [f"{_signed(differences[part])} in {part}" for part in largest]
    if abs(rest) > 1e-3 * macs["all"]:
        said.append(f"{_signed(rest)} elsewhere")
    return ", ".join(said) or "the same"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else '-'}{format_macs(abs(value))}"


def _conditional(conditional: Mapping[str, Any] | None) -> list[str]:
    if not conditional:
        return []
    figures = ("mean", "p5", "p50", "p95")
    rows = [
        [f"{kind}, utterances", "", *(format_macs(conditional[kind][key]) for key in figures)]
        for kind in ("theoretical", "executed")
    ]
    for name, entry in conditional["by_segment"].items():
        cells = [format_macs(entry.get(key)) for key in figures]
        rows.append([f"executed, {name.replace('_', ' ')}", f"{entry['seconds']:.1f}", *cells])
    text = f"MAC/s over {conditional['utterances']} utterances, {conditional['seconds']:.0f} s:"
    return [text, "", *_table(["", "seconds", "mean", "5 %", "median", "95 %"], rows), ""]


def _runs(cost: Mapping[str, Any]) -> list[str]:
    if not cost["other_runs"]:
        return []
    first = {"device": cost["environment"]["device"], "rtf": cost["rtf"]}
    rows = []
    for run in ({**first, "memory_mb": cost["memory_mb"]}, *cost["other_runs"]):
        rtf = run["rtf"]
        spread = f"{rtf['median']:.3f} ({rtf['min']:.3f} to {rtf['max']:.3f})"
        rows.append([run["device"], str(rtf["threads"]), spread, f"{run['memory_mb']['peak']:.0f}"])
    return [*_table(["device", "threads", "RTF", "peak MB"], rows), ""]


def _curves(cost: Mapping[str, Any]) -> list[str]:
    lines = []
    for curve in cost["curves"]:
        title = f"Over the length of the input, {curve['device']}, {_threads(curve['threads'])}"
        rows = [
            [
                f"{point['seconds']:g}",
                f"{point['rtf']['median']:.3f}",
                f"{point['memory_mb']['peak']:.0f}",
                f"{point['memory_mb']['peak'] - point['memory_mb']['baseline']:.0f}",
            ]
            for point in curve["points"]
        ]
        lines += [f"{title}:", "", *_table(["s", "RTF", "peak MB", "of the run MB"], rows), ""]
        if curve["slope"]:
            slope = curve["slope"]
            lines.append(
                f"Growth from {slope['from_s']:g} to {slope['to_s']:g} s: "
                + ", ".join(
                    f"{name} n^{slope[name]:.2f} ({in_words(slope[name])})"
                    for name in ("time", "memory")
                )
                + "."
            )
        if curve["stopped"]:
            lines.append(f"Stopped before {curve['stopped']}.")
        lines.append("")
    return lines


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


def format_macs(value: float | None) -> str:
    """With the unit that leaves one to three digits before the point; a dash for None."""
    if value is None:
        return "-"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.{3 if unit == 'G' else 1}f} {unit}"
    return f"{value:.0f}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
