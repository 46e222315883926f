"""Where a DSN works hard, and what it gets for it: the pictures of its paper.

Utilisation under the spectrogram with who speaks when (Figs. 6, 8 and 14), which widths a segment
with nobody, one or several speakers gets (Figs. 9 and 15), quality by utilisation from one
checkpoint (Figs. 5, 7 and 10). The latter two come from ``budgets.json`` of stage 6.

Legend: T frames, J speakers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espnet2_sepx.report.charts import Chart, Series, grouped_bars, line_chart, ticks
from espnet2_sepx.report.examples import Example, Signal
from espnet2_sepx.report.model import load_model

SEGMENT_TITLES = {"silence": "nobody", "single": "one", "overlap": "several"}
CURVES = (
    ("priced gate", "gate, at a price on width", "s1"),
    ("one width", "one width for all frames", "s2"),
    ("gate", "gate as trained", "s3"),
)


@dataclass(frozen=True)
class Track:
    """Of one mixture."""

    utilization_T: NDArray[np.float64]
    active_JT: NDArray[np.bool_]
    frame_s: float
    """Distance of frames."""


class WidthMeter:
    """A trained DSN that tells its widths."""

    def __init__(self, config: Path, model_file: Path) -> None:
        self._separate = load_model(config, model_file)
        self._model = self._separate.enh_model
        self._model.separator.record_utilization = True

    def __call__(self, mixture: Signal, references: Sequence[Signal], fs: int) -> Track:
        """Separate one mixture."""
        from espnet2_sepx.profiling.budgets import activity_of_frames
        from espnet2_sepx.profiling.streaming import framing

        self._separate(mixture[None].astype(np.float32), fs=fs)
        utilization_T = self._model.separator.last_utilization.utilization[0].double().numpy()
        active_JT = activity_of_frames(references, len(utilization_T), self._model, fs).numpy()
        return Track(utilization_T, active_JT, framing(self._model)[0] / fs)


def width_figure(example: Example, track: Track) -> dict[str, Any]:
    """What the template needs for one mixture: its spectrogram, and below it T frames as steps."""
    frames = max(1, min(len(track.utilization_T), round(example.shown / track.frame_s)))
    used_T = track.utilization_T[:frames]
    return {
        "utt": example.utt,
        "why": example.why,
        "seconds": example.shown,
        "spectrogram": example.mixture.image,
        "mean": float(used_T.mean()),
        "frames": frames,
        "path": step_path(used_T),
        "activity": [
            [(start, end - start) for start, end in runs(active_T[:frames])]
            for active_T in track.active_JT
        ],
        "x_ticks": [(f"{t:g}", 100 * t / example.shown) for t in ticks(0.0, example.shown)],
        "y_ticks": [(f"{k:g}", 100 * k / (example.fs / 2000)) for k in ticks(0, example.fs / 2000)],
    }


def widths_section(
    figures: Sequence[dict[str, Any]], budgets: dict[str, Any] | None
) -> dict[str, Any]:
    """What the template needs.

    Args:
        figures: of ``width_figure``.
        budgets: content of ``budgets.json``; None leaves the charts out.
    """
    section: dict[str, Any] = {"figures": list(figures), "charts": [], "utterances": None}
    if budgets is not None:
        section["utterances"] = budgets["utterances"]
        section["charts"] = [*_trade_offs(budgets["points"]), *_histogram(budgets)]
    return section


def step_path(values_T: NDArray[np.float64]) -> str:
    """SVG path of a step function on a canvas T wide and 1 high, value 1 on top."""
    changes = [0, *(np.flatnonzero(np.diff(values_T)) + 1).tolist()]
    parts = [f"M0 {1 - values_T[0]:.4g}"]
    parts += [f"H{frame}V{1 - values_T[frame]:.4g}" for frame in changes[1:]]
    return "".join(parts) + f"H{len(values_T)}"


def runs(active_T: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and one-past-last frame of each stretch that is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active_T, [False]]).astype(int)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _trade_offs(points: Sequence[dict[str, Any]]) -> list[Chart]:
    charts = []
    for title, key, unit, label in (
        ("Quality by utilisation", "utilization", 1.0, "mean utilisation"),
        ("Quality by work", "macs", 1e-9, "GMAC/s, executed"),
    ):
        curves = []
        for kind, name, style in CURVES:
            found = sorted(
                (unit * point[key], point["si_snri"])
                for point in points
                if point["kind"] == kind and point["si_snri"] is not None
            )
            if found:
                xs, ys = zip(*found, strict=True)
                curves.append(Series(name, xs, ys, style))
        svg = line_chart(title, curves, label, "SI-SNR improvement (dB)", dots=True)
        if svg:
            charts.append(Chart(f"{title}, one checkpoint", svg))
    return charts


def _histogram(budgets: dict[str, Any]) -> list[Chart]:
    found = {name: row for name, row in (budgets["segments"] or {}).items() if row["frames"]}
    if not found:
        return []
    groups = [
        (f"{SEGMENT_TITLES[name]}: {row['utilization']:.2f}", row["share"])
        for name, row in found.items()
    ]
    labels = [f"{level:g}" for level in budgets["levels"]]
    svg = grouped_bars(
        "Share of each width by number of speakers", groups, labels, "share of frames"
    )
    return [Chart("Widths by number of speakers, and their mean", svg)]
