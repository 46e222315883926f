"""What the scores of a set come to: means with their uncertainty, buckets, worst utterances."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espnet2_sepx.files import atomic_write
from espnet2_sepx.score.metrics import (
    ESTIMATE_SILENCE_RMS,
    MAX_DB,
    PESQ_MAX_SECONDS,
    PESQ_MODES,
    REFERENCE_SILENCE_RMS,
    SDR_TAPS,
    TITLES,
)
from espnet2_sepx.score.table import LENGTH_TOLERANCE_S, Row

SCHEMA = 1
OVERLAP_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
WORST_COUNT = 10
RESAMPLES = 2000
BOOTSTRAP_SEED = 0


def bootstrap_interval(
    values: NDArray[np.float64], seed: int = BOOTSTRAP_SEED, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the mean, None for fewer than two values.

    Utterances are resampled, not speakers: with few speakers in a set the true uncertainty about
    new speakers is larger.
    """
    if len(values) < 2:
        return None
    rng = np.random.default_rng(seed)
    # One resample at a time: memory stays that of the set, and the stream of numbers too.
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarise(
    rows: list[Row], name: str, sample_rate: int, skipped: dict[str, str] | None = None
) -> dict[str, Any]:
    """Everything of ``summary.json``.

    Args:
        rows: the scored utterances, at least one.
        name: of the set.
        sample_rate: in Hz.
        skipped: metrics that were left out, with the reason.
    """
    if not rows:
        raise ValueError("rows must hold at least one utterance, got none")
    columns = list(rows[0].values)
    return {
        "schema": SCHEMA,
        "set": name,
        "fs": sample_rate,
        "count": len(rows),
        "seconds": round(sum(row.seconds for row in rows), 3),
        "metrics": {column: _statistics(rows, column) for column in columns},
        "buckets": _buckets(rows, columns),
        "worst": _worst(rows, columns),
        "skipped": skipped or {},
        "conventions": conventions(sample_rate),
    }


def _present(rows: list[Row], column: str) -> NDArray[np.float64]:
    values = (row.mean(column) for row in rows)
    return np.array([value for value in values if value is not None], dtype=np.float64)


def _mean(rows: list[Row], column: str) -> float | None:
    values = _present(rows, column)
    return round(float(values.mean()), 6) if len(values) else None


def _statistics(rows: list[Row], column: str) -> dict[str, Any]:
    values = _present(rows, column)
    low, high = bootstrap_interval(values) or (None, None)
    return {
        "mean": _mean(rows, column),
        "ci_low": None if low is None else round(low, 6),
        "ci_high": None if high is None else round(high, 6),
        "count": len(values),
        "missing": len(rows) - len(values),
    }


def _buckets(rows: list[Row], columns: list[str]) -> list[dict[str, Any]]:
    """Means over all, and over ranges of overlap ratio where there are any such utterances."""
    buckets = [("all", 0.0, 1.0, rows)]
    for low, high in itertools.pairwise(OVERLAP_EDGES):
        members = [
            row
            for row in rows
            if row.overlap is not None and (low <= row.overlap < high or row.overlap == high == 1)
        ]
        if members:
            buckets.append((f"{100 * low:.0f}-{100 * high:.0f} %", low, high, members))
    return [
        {
            "name": name,
            "low": low,
            "high": high,
            "count": len(members),
            "metrics": {column: _mean(members, column) for column in columns},
        }
        for name, low, high, members in buckets
    ]


def _worst(rows: list[Row], columns: list[str]) -> list[dict[str, Any]]:
    """Utterances with the lowest SI-SNRi (or the first metric there is), worst first."""
    ranked_by = "si_snri" if "si_snri" in columns else columns[0]
    scored = [(value, row) for row in rows if (value := row.mean(ranked_by)) is not None]
    scored.sort(key=lambda pair: (pair[0], pair[1].utt))
    return [
        {
            "utt": row.utt,
            "seconds": round(row.seconds, 3),
            "overlap": row.overlap,
            **{column: _mean([row], column) for column in columns},
            "note": "; ".join(row.notes),
        }
        for _, row in scored[:WORST_COUNT]
    ]


def conventions(sample_rate: int) -> dict[str, str]:
    """The rules the numbers follow, in words."""
    band = {"nb": "narrow", "wb": "wide"}.get(PESQ_MODES.get(sample_rate, ""))
    return {
        "si_snr": f"means removed, limited to +-{MAX_DB:g} dB",
        "sdr": f"BSSEval v3, {SDR_TAPS} taps, limited to +-{MAX_DB:g} dB",
        "improvement": "value of the estimate minus value of the mixture, same reference",
        "pesq": f"{band} band, MOS-LQO, up to {PESQ_MAX_SECONDS:g} s"
        if band
        else f"not defined at {sample_rate} Hz",
        "permutation": "the one with the best SI-SNR, used for all metrics",
        "utterance": "mean over its speakers, missing if any speaker's value is missing",
        "silence": f"a reference of at most {REFERENCE_SILENCE_RMS:g} RMS or an estimate of at "
        f"most {ESTIMATE_SILENCE_RMS:g} RMS (means removed) has no scores",
        "length": f"differences up to {1000 * LENGTH_TOLERANCE_S:g} ms are cut",
        "interval": f"95 % percentile bootstrap over utterances, {RESAMPLES} resamples, "
        f"seed {BOOTSTRAP_SEED}",
    }


# --- for human readers ---------------------------------------------------------------------------


def format_value(column: str, value: float | None) -> str:
    """A number with the digits it deserves: two for dB and PESQ, three for intelligibility."""
    if value is None:
        return "-"
    return f"{value:.3f}" if column in ("stoi", "estoi") else f"{value:.2f}"


def markdown(summary: dict[str, Any]) -> str:
    """``RESULTS.md`` of one set."""
    columns = list(summary["metrics"])
    lines = [
        f"# Scores of `{summary['set']}`",
        "",
        f"{summary['count']} utterances, {summary['seconds'] / 60:.1f} minutes, "
        f"{summary['fs']} Hz.",
        "",
        "| metric | mean | 95 % interval | utterances | missing |",
        "|---|---:|---:|---:|---:|",
    ]
    for column, entry in summary["metrics"].items():
        low, high = (format_value(column, entry[key]) for key in ("ci_low", "ci_high"))
        interval = "-" if entry["ci_low"] is None else f"{low} .. {high}"
        lines.append(
            f"| {TITLES[column]} | {format_value(column, entry['mean'])} | {interval} "
            f"| {entry['count']} | {entry['missing']} |"
        )
    lines += [f"\nNot computed: {name} ({why})." for name, why in summary["skipped"].items()]
    header = [TITLES[column] for column in columns]
    if len(summary["buckets"]) > 1:
        lines += ["", "## By overlap of the speakers", ""]
        lines += _table_head("overlap", "utterances", *header)
        for bucket in summary["buckets"]:
            cells = (format_value(column, bucket["metrics"][column]) for column in columns)
            lines.append(f"| {bucket['name']} | {bucket['count']} | {' | '.join(cells)} |")
    lines += ["", "## Worst utterances", "", *_table_head("utterance", "seconds", *header)]
    for entry in summary["worst"]:
        cells = (format_value(column, entry[column]) for column in columns)
        lines.append(f"| {entry['utt']} | {entry['seconds']:.1f} | {' | '.join(cells)} |")
    lines += ["", "## Conventions", ""]
    lines += [f"* {name}: {rule}" for name, rule in summary["conventions"].items()]
    return "\n".join(lines) + "\n"


def _table_head(*titles: str) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|---|" + "---:|" * (len(titles) - 1)]


def write_summary(folder: str | Path, summary: dict[str, Any]) -> None:
    """Write ``RESULTS.md``, then ``summary.json``, whose presence says that all is there."""
    with atomic_write(Path(folder) / "RESULTS.md") as stream:
        stream.write(markdown(summary))
    with atomic_write(Path(folder) / "summary.json") as stream:
        json.dump(summary, stream, indent=1, ensure_ascii=False)
        stream.write("\n")
