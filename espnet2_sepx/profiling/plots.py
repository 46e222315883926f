"""Drawings of costs: time and memory over length, MACs by part, cost by number of speakers.

Needs matplotlib, which only this module imports. Files are SVG, beside the JSON or Markdown file
they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from espnet2_sepx.files import atomic_write
from espnet2_sepx.profiling.curve import run_seconds

LARGEST_PARTS = 12


def require_matplotlib() -> ModuleType:
    """``matplotlib.pyplot`` without a display."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            'plots need matplotlib: python -m pip install "espnet2_sepx[report]"'
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_cost(cost: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw what one cost has: ``<out>_parts.svg``, ``<out>_curves.svg``, ``<out>_segments.svg``."""
    drawn = [_draw_parts(cost, _beside(out, "parts"))]
    if any(curve["points"] for curve in cost["curves"]):
        drawn.append(_draw_curves([cost], _beside(out, "curves")))
    if cost.get("conditional"):
        drawn.append(_draw_segments(cost, _beside(out, "segments")))
    return drawn


def draw_comparison(costs: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Curves of several systems in one drawing, if they have any: ``<out>_curves.svg``."""
    if not any(curve["points"] for cost in costs for curve in cost["curves"]):
        return []
    return [_draw_curves(costs, _beside(out, "curves"))]


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f"{out.stem}_{what}.svg")


def _draw_curves(costs: Sequence[Mapping[str, Any]], path: Path) -> Path:
    plt = require_matplotlib()
    figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for cost in costs:
        for curve in cost["curves"]:
            points = curve["points"]
            label = f"{cost['config']}, {curve['device']}, {curve['threads']} threads"
            lengths = [point["seconds"] for point in points]
            grown = [p["memory_mb"]["peak"] - p["memory_mb"]["baseline"] for p in points]
            time.plot(lengths, [run_seconds(point) for point in points], "o-", label=label)
            memory.plot(lengths, grown, "o-", label=label)
    for axes, title in ((time, "computing time (s)"), (memory, "memory of the run (MB)")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("length of the input (s)")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
    time.legend(fontsize="x-small")
    return _save(plt, figure, path)


def _draw_parts(cost: Mapping[str, Any], path: Path) -> Path:
    """Bars of the largest parts: products with weights, and the others."""
    plt = require_matplotlib()
    by_part = cost["macs_per_second"]["by_part"]
    parts = sorted(by_part, key=lambda part: by_part[part]["all"])[-LARGEST_PARTS:]
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.28 * len(parts)), layout="constrained")
    weights = [by_part[part]["weights"] / 1e6 for part in parts]
    others = [by_part[part]["all"] / 1e6 - w for part, w in zip(parts, weights, strict=True)]
    axes.barh(parts, weights, label="with weights")
    axes.barh(parts, others, left=weights, label="without (attention, transforms, ...)")
    axes.set_xlabel("MMAC per second of audio")
    axes.legend(fontsize="x-small")
    return _save(plt, figure, path)


def _draw_segments(cost: Mapping[str, Any], path: Path) -> Path:
    """Executed MACs by number of speakers: mean, and 5 % to 95 % of the frames."""
    plt = require_matplotlib()
    conditional = cost["conditional"]
    segments = {k: v for k, v in conditional["by_segment"].items() if "mean" in v}
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    means = [entry["mean"] / 1e6 for entry in segments.values()]
    low = [(e["mean"] - min(e["p5"], e["mean"])) / 1e6 for e in segments.values()]
    high = [(max(e["p95"], e["mean"]) - e["mean"]) / 1e6 for e in segments.values()]
    axes.bar([name.replace("_", " ") for name in segments], means, yerr=[low, high], capsize=6)
    axes.axhline(conditional["theoretical"]["mean"] / 1e6, linestyle="--", label="theoretical")
    axes.set_ylabel("MMAC per second of audio")
    axes.legend(fontsize="x-small")
    return _save(plt, figure, path)


def _save(plt: ModuleType, figure: Any, path: Path) -> Path:
    with atomic_write(path) as stream:
        figure.savefig(stream, format="svg")
    plt.close(figure)
    return path
