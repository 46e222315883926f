"""RESULTS.json, RESULTS.md and the table at the end of a run.

The JSON is what tables over several experiments are made from; it has no date and no absolute path,
so that the same experiment gives the same file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from espnet2_sepx.files import atomic_write
from espnet2_sepx.report.collect import EvalSet, Experiment, file_digest, versions

SCHEMA = 1

# name in score files -> (title, unit, decimals), in the order of the tables
METRICS: dict[str, tuple[str, str, int]] = {
    "si_snri": ("SI-SNRi", "dB", 2),
    "sdri": ("SDRi", "dB", 2),
    "si_snr": ("SI-SNR", "dB", 2),
    "sdr": ("SDR", "dB", 2),
    "pesq": ("PESQ", "", 2),
    "stoi": ("STOI", "", 3),
    "estoi": ("ESTOI", "", 3),
}

UNKNOWN = "\N{EN DASH}"


def build_results(experiment: Experiment) -> dict[str, Any]:
    """The content of RESULTS.json."""
    model = experiment.model_file
    return {
        "schema": SCHEMA,
        "experiment": experiment.name,
        "system": {
            "separator": experiment.separator,
            "separator_conf": experiment.separator_conf,
            "encoder": experiment.config.get("encoder"),
            "encoder_conf": experiment.encoder_conf,
        },
        "model": {"file": model.name, "sha256": file_digest(model)} if model else None,
        "training": training_summary(experiment),
        "scores": {evaluated.name: _scores(evaluated) for evaluated in experiment.sets},
        "cost": _cost(experiment.cost),
        "data": {evaluated.name: data_summary(evaluated) for evaluated in experiment.sets},
        "versions": versions(experiment.config),
        "missing": [
            {"what": part.what, "command": part.command, "detail": part.detail}
            for part in experiment.missing
        ],
    }


def training_summary(experiment: Experiment) -> dict[str, Any] | None:
    """Epochs, and the best one by the criterion the model was selected with."""
    curves = experiment.curves
    if curves is None:
        return None
    summary: dict[str, Any] = {"epochs": curves.epochs[-1]}
    for phase, key, mode in selection_criteria(experiment):
        best = curves.best(phase, key, mode)
        if best is not None:
            summary |= {"criterion": f"{phase}.{key}", "best_epoch": best[0], "best": best[1]}
            break
    for phase in ("train", "valid"):
        known = [value for value in curves.get(phase, "loss") if value is not None]
        if known:
            summary[f"{phase}_loss"] = known[-1]
    return summary


def selection_criteria(experiment: Experiment) -> list[tuple[str, str, str]]:
    """(phase, key, min | max) by which the model file was selected, then the usual ones."""
    configured = [
        (str(item[0]), str(item[1]), str(item[2]))
        for item in experiment.config.get("best_model_criterion") or []
        if len(item) == 3
    ]
    name = experiment.model_file.name if experiment.model_file else ""
    match = re.match(r"(train|valid)\.(\w+)\.(best|ave)", name)
    first = [item for item in configured if match and item[:2] == match.groups()[:2]]
    return [*first, *configured, ("valid", "si_snr_loss", "min"), ("valid", "loss", "min")]


def data_summary(evaluated: EvalSet) -> dict[str, Any]:
    """Size of an evaluated set."""
    seconds = [row["seconds"] for row in evaluated.rows if row.get("seconds") is not None]
    overlaps = [row["overlap"] for row in evaluated.rows if row.get("overlap") is not None]
    return {
        "mixtures": len(evaluated.rows) or (evaluated.summary or {}).get("count"),
        "minutes": round(sum(seconds) / 60, 2) if seconds else None,
        "mean_overlap": round(sum(overlaps) / len(overlaps), 3) if overlaps else None,
        "fs": (evaluated.summary or {}).get("fs"),
    }


def _scores(evaluated: EvalSet) -> dict[str, Any] | None:
    if evaluated.summary is None:
        return None
    keys = ("fs", "count", "metrics", "buckets", "conventions")
    return {key: evaluated.summary.get(key) for key in keys}


def _cost(cost: dict[str, Any] | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    return {key: value for key, value in cost.items() if key not in ("schema", "config")}


# --- text ----------------------------------------------------------------------------------------


def score_columns(experiment: Experiment) -> list[str]:
    """Metrics that any set has, in the usual order."""
    present = {name for evaluated in experiment.sets for name in evaluated.metrics}
    return [name for name in METRICS if name in present]


def format_score(metric: str, value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.{METRICS[metric][2]}f}"


def format_interval(metric: str, entry: dict[str, Any]) -> str:
    """``[low, high]`` of a metric's entry in ``summary.json``, "" if it has none."""
    low, high = entry.get("ci_low"), entry.get("ci_high")
    if low is None or high is None:
        return ""
    return f"[{format_score(metric, low)}, {format_score(metric, high)}]"


def quantity(value: float | None, unit: str = "") -> str:
    """A number with a prefix: 2 348 152 -> "2.35 M", 4.1e9 and "MAC/s" -> "4.10 GMAC/s"."""
    if value is None:
        return UNKNOWN
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def key_figures(experiment: Experiment) -> list[tuple[str, str, str]]:
    """(title, value, remark) of the numbers that sum up an experiment."""
    return score_figures(experiment) + cost_figures(experiment.cost or {})


def score_figures(experiment: Experiment) -> list[tuple[str, str, str]]:
    """Key figures of the first scored set."""
    figures = []
    scored = next((item for item in experiment.sets if item.summary is not None), None)
    if scored is not None:
        for metric in ("si_snri", "sdri", "pesq", "stoi"):
            entry = scored.metrics.get(metric)
            if entry is not None:
                title, unit, _ = METRICS[metric]
                value = f"{format_score(metric, entry.get('mean'))} {unit}".strip()
                interval = format_interval(metric, entry)
                figures.append((title, value, f"95 % {interval}" if interval else ""))
    return figures


def cost_figures(cost: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Key figures of ``cost.json``."""
    figures = []
    parameters = (cost.get("parameters") or {}).get("total")
    if parameters is not None:
        figures.append(("Parameters", quantity(parameters), f"{parameters:,} exactly"))
    macs = cost.get("macs_per_second") or {}
    if macs.get("weights") is not None:
        remark = f"of weight layers; {quantity(macs.get('all'))} in all"
        figures.append(("MACs per second", quantity(macs["weights"]), remark))
    rtf = cost.get("rtf") or {}
    if rtf.get("median") is not None:
        threads = rtf.get("threads", 1)
        remark = f"median, {threads} CPU thread{'s' if threads != 1 else ''}"
        figures.append(("Real-time factor", f"{rtf['median']:.3g}", remark))
    return figures


def score_table(experiment: Experiment) -> tuple[list[str], list[list[str]]]:
    """Header and rows (one per set) as text."""
    metrics = score_columns(experiment)
    header = ["set", "mixtures"] + [
        f"{METRICS[name][0]} {METRICS[name][1]}".strip() for name in metrics
    ]
    rows = []
    for evaluated in experiment.sets:
        cells = [evaluated.name, str((evaluated.summary or {}).get("count", UNKNOWN))]
        for name in metrics:
            entry = evaluated.metrics.get(name, {})
            interval = format_interval(name, entry) if name in ("si_snri", "sdri") else ""
            cells.append(f"{format_score(name, entry.get('mean'))} {interval}".strip())
        rows.append(cells)
    return header, rows


def render_markdown(experiment: Experiment) -> str:
    """The content of RESULTS.md."""
    header, rows = score_table(experiment)
    lines = [f"# {experiment.name}", "", f"Separator `{experiment.separator}`."]
    training = training_summary(experiment)
    if training is not None and "best_epoch" in training:
        lines[-1] += (
            f" {training['epochs']} epochs, best epoch {training['best_epoch']} "
            f"(`{training['criterion']}` = {training['best']:.3f})."
        )
    if score_columns(experiment):
        lines += ["", "## Scores", "", *_markdown_table(header, rows)]
        lines += ["", "Means over mixtures; in brackets 95 % confidence intervals."]
    figures = cost_figures(experiment.cost or {})
    if figures:
        lines += [
            "",
            "## Cost",
            "",
            *_markdown_table(["cost", "value", "remark"], [list(row) for row in figures]),
        ]
    if experiment.missing:
        lines += ["", "## Missing", ""]
        lines += [f"- {part}: `{part.command}`" for part in experiment.missing]
    return "\n".join(lines) + "\n"


def render_terminal(experiment: Experiment) -> str:
    """A compact table for the end of a run."""
    header, rows = score_table(experiment)
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    cost = ", ".join(f"{title} {value}" for title, value, _ in cost_figures(experiment.cost or {}))
    title = f"{experiment.name} ({experiment.separator})"
    return "\n".join([title, *([cost] if cost else []), "", *lines])


def write_results(experiment: Experiment) -> dict[str, Any]:
    """Write RESULTS.json and RESULTS.md into the experiment folder."""
    results = build_results(experiment)
    with atomic_write(experiment.directory / "RESULTS.json") as stream:
        json.dump(results, stream, indent=1, sort_keys=True)
        stream.write("\n")
    with atomic_write(experiment.directory / "RESULTS.md") as stream:
        stream.write(render_markdown(experiment))
    return results


def read_results(path: Path) -> dict[str, Any]:
    """Read a RESULTS.json back."""
    return json.loads(path.read_text(encoding="utf-8"))


def _markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Padded, so that it reads well as plain text, too."""
    lines = [header, *rows]
    widths = [max(3, *(len(row[column]) for row in lines)) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in lines
    ]
