"""The routing section of the page: images, ticks and shares, made from routing records.

Legend: T frames, F bins, K bands, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espnet2_sepx.report.plots import (
    expert_palette,
    index_png,
    spectrogram_db,
    spectrogram_png,
)
from espnet2_sepx.report.routing import (
    FigureInput,
    Record,
    RoutingMap,
    Share,
    figure_block,
    routing_map,
)

ROWS_PER_BAND = 4
_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000)


def routing_section(
    figure: FigureInput | None,
    records: Sequence[Record],
    shares: Sequence[Share],
    num_experts: dict[str, int],
    window: int,
    hop: int,
    mixtures: int,
    bands: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """What the template needs.

    Args:
        figure: input of the picture, ``records`` its routing; None leaves the picture out.
        shares: over ``mixtures`` mixtures.
        num_experts: E per axis.
        window, hop: of the model's STFT, in samples.
        bands: (first, last) bin of each band; None takes the usual mel bands.
    """
    palette = expert_palette(max(num_experts.values()))
    section: dict[str, Any] = {
        "palette": palette,
        "experts": num_experts,
        "shares": [_share_row(share) for share in shares],
        "mixtures": mixtures,
        "figure": None,
    }
    if figure is None or not records:
        return section
    maps = {item.layer: item for item in map(routing_map, records)}
    num_bands = next(iter(maps.values())).expert_TK.shape[1]
    level_FT = spectrogram_db(figure.signal, window, hop)
    bins = len(level_FT)
    # Imported here: it brings torch, which a report without a routing picture does not need.
    from espnet2_sepx.layers.band_split import mel_bands

    centres = np.mean(bands or mel_bands(bins, num_bands, figure.fs), axis=1)
    # Row r of the picture lies at band coordinate r / ROWS_PER_BAND, band k covers [k, k + 1].
    knots = np.concatenate([[0.0], np.arange(num_bands) + 0.5, [float(num_bands)]])
    knot_bins = np.maximum.accumulate(np.concatenate([[0.0], centres, [bins - 1.0]]))
    rows = (np.arange(num_bands * ROWS_PER_BAND) + 0.5) / ROWS_PER_BAND
    warped = _rows_at(level_FT, np.interp(rows, knots, knot_bins))
    blocks = sorted({layer.block for layer in maps})
    ffns = sorted({layer.ffn for layer in maps})
    frames = level_FT.shape[1]
    default = (figure_block(max(blocks)), ffns[0])
    if default[0] not in blocks:
        default = (blocks[-1], ffns[0])
    section["figure"] = {
        "utt": figure.utt,
        "spectrogram": spectrogram_png(warped, float(level_FT.max())),
        "frames": frames,
        "bands": num_bands,
        "frame_ms": 1000 * hop / figure.fs,
        "parts": list(figure.names),
        "y_ticks": _frequency_ticks(knots, knot_bins, bins, figure.fs, num_bands),
        "x_ticks": [(tick, 100 * tick / frames) for tick in _frame_ticks(frames)],
        "blocks": blocks,
        "ffns": ffns,
        "default": default,
        "panels": [
            _panel(block, ffn, list(maps.values()), palette) for block in blocks for ffn in ffns
        ],
    }
    return section


def _rows_at(level_FT: NDArray[np.float64], bins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spectrogram rows at fractional bins."""
    low = np.minimum(bins.astype(int), len(level_FT) - 2)
    weight = (bins - low)[:, None]
    return level_FT[low] * (1 - weight) + level_FT[low + 1] * weight


def _frequency_ticks(
    knots: NDArray[np.float64], knot_bins: NDArray[np.float64], bins: int, fs: int, bands: int
) -> list[tuple[str, float]]:
    """(label, height in percent) of round frequencies."""
    ticks = []
    for hertz in _TICKS_HZ:
        if hertz < 0.98 * fs / 2:
            at = np.interp(hertz / (fs / 2) * (bins - 1), knot_bins, knots)
            label = f"{hertz // 1000}k" if hertz >= 1000 else str(hertz)
            ticks.append((label, round(100 * float(at) / bands, 2)))
    return ticks


def _frame_ticks(frames: int) -> list[int]:
    step = next(step for step in (10, 20, 50, 100, 200, 500, 1000) if frames / step <= 7)
    return list(range(0, frames, step))


def _panel(
    block: int, ffn: int, maps: Sequence[RoutingMap], palette: Sequence[str]
) -> dict[str, Any]:
    """Bars and maps of one FFN of one block."""
    panel: dict[str, Any] = {"block": block, "ffn": ffn, "time": None, "frequency": None}
    for item in maps:
        if (item.layer.block, item.layer.ffn) == (block, ffn):
            along_time = item.layer.axis == "time"
            bar = item.bar[None, :] if along_time else item.bar[:, None]
            panel[item.layer.axis] = {
                "bar": index_png(bar, palette),
                "map": index_png(item.expert_TK.T, palette),
                "agreement": item.agreement,
                "experts": [
                    {"number": int(expert) + 1, "share": float((item.expert_TK == expert).mean())}
                    for expert in np.unique(item.expert_TK)
                ],
            }
    return panel


def _share_row(share: Share) -> dict[str, Any]:
    count = len(share.share_E)
    return {
        "layer": share.layer,
        "cells": [
            {
                "percent": 100 * float(value),
                # 1 at an even share or more, so that shades compare between layers of one table
                "shade": min(1.0, float(value) * count / 2),
                "state": "never"
                if expert in share.never
                else ("starved" if expert in share.starved else ""),
            }
            for expert, value in enumerate(share.share_E)
        ],
        "never": [expert + 1 for expert in share.never],
        "starved": [expert + 1 for expert in share.starved if expert not in share.never],
        "largest": count * float(share.share_E.max()),
    }
