"""Fill the page. What a section says is decided here, how it looks in ``template.html``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from espnet2_sepx.report.charts import (
    Chart,
    Series,
    histogram,
    line_chart,
    scatter_chart,
)
from espnet2_sepx.report.collect import EvalSet, Experiment, versions
from espnet2_sepx.report.cost_view import cost_section
from espnet2_sepx.report.examples import Example
from espnet2_sepx.report.results import (
    METRICS,
    UNKNOWN,
    data_summary,
    format_interval,
    format_score,
    key_figures,
    score_columns,
    training_summary,
)

WORST_ROWS = 8
# Statistics of the trainer itself; everything else it logs belongs to the model.
_HOUSEKEEPING = re.compile(
    r"(iter_time|forward_time|backward_time|optim_step_time|train_time|time|total_count|"
    r"gpu_max_cached_mem_GB|loss_scale|clip|grad_norm|optim\d+_lr\d+)$"
)
_MOE_KEY = re.compile(r"moe_([tf])(\d+)_ffn(\d+)_(\w+)$")
_MOE_TITLES = {
    "balance": "Balance loss per layer (1 = even, E = collapsed)",
    "max_share": "Busiest expert's share over an even share",
    "min_share": "Idlest expert's share over an even share",
    "alive": "Experts alive",
    "top1_prob": "Mean probability of the chosen expert",
}


def render(
    experiment: Experiment,
    examples: dict[str, list[Example]],
    routing: dict[str, Any] | None = None,
    widths: dict[str, Any] | None = None,
) -> str:
    """The whole page.

    Args:
        examples: per set.
        routing: as made by ``routing_view.routing_section``; None where the system has no experts.
        widths: as made by ``widths.widths_section``; None where all frames cost the same.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = Path(__file__).with_name("template.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        experiment=experiment,
        headline=_headline(experiment),
        figures=key_figures(experiment),
        sets=[_set_section(item, examples.get(item.name, [])) for item in experiment.sets],
        metrics=[(name, *METRICS[name][:2]) for name in score_columns(experiment)],
        cost=cost_section(experiment.cost) if experiment.cost else None,
        curves=training_charts(experiment),
        expert_curves=expert_charts(experiment),
        routing=routing,
        widths=widths,
        provenance=_provenance(experiment),
        missing=experiment.missing,
    )


def _headline(experiment: Experiment) -> str:
    """One line on the system: its options that are worth a word."""
    conf = experiment.separator_conf
    shown = [
        ("num_spk", "{} speakers"),
        ("num_channels", "N = {}"),
        ("num_blocks", "R = {}"),
        ("num_bands", "K = {}"),
        ("t_module", "T-module {}"),
        ("f_module", "F-module {}"),
        ("num_experts", "E = {}"),
        ("top_k", "top {}"),
    ]
    routed = "moe" in (conf.get("t_module"), conf.get("f_module"))
    parts = [
        text.format(conf[name])
        for name, text in shown
        if conf.get(name) is not None and (routed or name not in ("num_experts", "top_k"))
    ]
    return ", ".join(parts)


# --- scores --------------------------------------------------------------------------------------


def _set_section(evaluated: EvalSet, examples: list[Example]) -> dict[str, Any]:
    summary = evaluated.summary or {}
    scores = {
        name: (format_score(name, entry.get("mean")), format_interval(name, entry), entry)
        for name, entry in evaluated.metrics.items()
        if name in METRICS
    }
    shown = {example.utt for example in examples}
    worst = sorted(
        (row for row in evaluated.rows if row.get("si_snri") is not None),
        key=lambda row: row["si_snri"],
    )[:WORST_ROWS]
    return {
        "name": evaluated.name,
        "scored": evaluated.summary is not None,
        "count": summary.get("count"),
        "scores": scores,
        "incomplete": {
            METRICS[name][0]: entry["missing"]
            for name, entry in evaluated.metrics.items()
            if name in METRICS and entry.get("missing")
        },
        "skipped": summary.get("skipped") or {},
        "buckets": _buckets(summary.get("buckets") or []),
        "charts": _score_charts(evaluated),
        "worst": [_worst_row(row, shown) for row in worst],
        "examples": examples,
        "data": data_summary(evaluated),
    }


def _buckets(buckets: list[dict[str, Any]]) -> dict[str, Any] | None:
    # The first bucket holds all mixtures; those figures head the section already.
    filled = [bucket for bucket in buckets if bucket.get("count") and bucket["name"] != "all"]
    if not filled:
        return None
    names = [
        name for name in METRICS if any(name in bucket.get("metrics", {}) for bucket in filled)
    ]
    best = max((bucket["metrics"].get("si_snri") or 0.0 for bucket in filled), default=0.0)
    rows = []
    for bucket in filled:
        values = bucket.get("metrics", {})
        gain = values.get("si_snri") or 0.0
        rows.append(
            {
                "name": bucket.get("name", UNKNOWN),
                "count": bucket["count"],
                "cells": [format_score(name, values.get(name)) for name in names],
                "bar": max(0.0, 100.0 * gain / best) if best > 0 else 0.0,
            }
        )
    return {"titles": [METRICS[name][0] for name in names], "rows": rows}


def _score_charts(evaluated: EvalSet) -> list[Chart]:
    scored = [row for row in evaluated.rows if row.get("si_snri") is not None]
    if len(scored) < 2:
        return []
    gains = [row["si_snri"] for row in scored]
    charts = [
        Chart(
            "Distribution of the improvement",
            histogram(
                f"Histogram of SI-SNRi over {len(gains)} mixtures of {evaluated.name}",
                gains,
                "SI-SNR improvement (dB)",
                "mixtures",
            ),
        )
    ]
    points = []
    for row in evaluated.rows:
        for number in _speakers(row):
            score, gain = row.get(f"si_snr_spk{number}"), row.get(f"si_snri_spk{number}")
            if score is not None and gain is not None:
                points.append((score - gain, gain, f"{row['utt']}, speaker {number}"))
    if points:
        charts.append(
            Chart(
                "Improvement by input level, one dot per speaker",
                scatter_chart(
                    f"SI-SNRi against input SI-SNR of {len(points)} speakers",
                    points,
                    "SI-SNR in the mixture (dB)",
                    "SI-SNR improvement (dB)",
                ),
            )
        )
    return charts


def _speakers(row: dict[str, Any]) -> list[int]:
    prefix = "si_snr_spk"
    return [int(key[len(prefix) :]) for key in row if key.startswith(prefix)]


def _worst_row(row: dict[str, Any], shown: set[str]) -> dict[str, Any]:
    return {
        "utt": row["utt"],
        "linked": row["utt"] in shown,
        "seconds": UNKNOWN if row.get("seconds") is None else f"{row['seconds']:.1f}",
        "overlap": UNKNOWN if row.get("overlap") is None else f"{row['overlap']:.0%}",
        "si_snri": format_score("si_snri", row["si_snri"]),
        "speakers": ", ".join(
            format_score("si_snri", row.get(f"si_snri_spk{number}")) for number in _speakers(row)
        ),
        "note": row.get("note") or "",
    }


# --- training ------------------------------------------------------------------------------------


def training_charts(experiment: Experiment) -> list[Chart]:
    """Loss first, then everything else the model logged in training or validation."""
    curves = experiment.curves
    if curves is None:
        return []
    keys = {key for phase in ("train", "valid") for key in curves.values.get(phase, {})}
    model_keys = sorted(
        (key for key in keys if not _HOUSEKEEPING.match(key) and not _MOE_KEY.match(key)),
        key=lambda key: (key != "loss", "si_snr" not in key, key),
    )
    charts = []
    for key in model_keys:
        series = [
            Series(name, curves.epochs, curves.get(phase, key), style)
            for phase, name, style in (
                ("train", "training", "s1"),
                ("valid", "validation", "s2"),
            )
            if curves.get(phase, key)
        ]
        svg = line_chart(f"{key} per epoch", series, "epoch", key)
        if svg:
            charts.append(Chart(key, svg))
    return charts


def expert_charts(experiment: Experiment) -> list[Chart]:
    """Logged expert load: one thin line per layer, one colour per axis."""
    curves = experiment.curves
    if curves is None:
        return []
    phase = (
        "valid" if any(_MOE_KEY.match(key) for key in curves.values.get("valid", {})) else "train"
    )
    grouped: dict[str, list[tuple[str, str]]] = {}
    for key in sorted(curves.values.get(phase, {})):
        match = _MOE_KEY.match(key)
        if match:
            grouped.setdefault(match.group(4), []).append((match.group(1), key))
    charts = []
    for statistic in [*_MOE_TITLES, *sorted(set(grouped) - set(_MOE_TITLES))]:
        seen: set[str] = set()
        series = []
        for axis, key in grouped.get(statistic, []):
            label = "" if axis in seen else f"{axis.upper()}-module layers"
            seen.add(axis)
            style = "thin s1" if axis == "t" else "thin s2"
            series.append(Series(label, curves.epochs, curves.get(phase, key), style))
        svg = line_chart(
            f"{statistic} per epoch and layer", series, "epoch", statistic, from_zero=True
        )
        if svg:
            charts.append(Chart(_MOE_TITLES.get(statistic, statistic), svg))
    return charts


def _provenance(experiment: Experiment) -> list[tuple[str, str]]:
    facts = [("Experiment", experiment.name), ("Separator", experiment.separator)]
    if experiment.model_file is not None:
        facts.append(("Model file", experiment.model_file.name))
    training = training_summary(experiment)
    if training is not None:
        best = f", best {training['best_epoch']}" if "best_epoch" in training else ""
        facts.append(("Epochs", f"{training['epochs']}{best}"))
    for name in ("train", "valid"):
        files = experiment.config.get(f"{name}_data_path_and_name_and_type") or []
        if files:
            facts.append((f"Data, {name}", str(Path(files[0][0]).parent)))
    for evaluated in experiment.sets:
        data = data_summary(evaluated)
        if data["mixtures"]:
            size = f"{data['mixtures']} mixtures"
            size += f", {data['minutes']:g} minutes" if data["minutes"] else ""
            facts.append((f"Data, {evaluated.name}", size))
    if experiment.config.get("seed") is not None:
        facts.append(("Seed", str(experiment.config["seed"])))
    return facts + list(versions(experiment.config).items())
