"""Quality and cost of one DSN checkpoint under several budgets, and where its gate spends.

A budget is a mean utilisation. It is kept in two ways: by the gate, when width gets a price that
brings the mean where it should be; and by one width for all frames. The gate without a price is the
model as trained. Segments of 96 ms are sorted by who speaks in them, from the references.

Legend: T frames, K levels.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from espnet2_sepx.data.kaldi import read_scp
from espnet2_sepx.losses.segments import CLASSES, Segmenter, segment_class
from espnet2_sepx.profiling.conditional import spread
from espnet2_sepx.profiling.inputs import recording, reference
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.model import separate
from espnet2_sepx.profiling.streaming import framing
from espnet2_sepx.score.metrics import pair_defect, si_snr
from espnet2_sepx.score.permute import permutation_by_si_snr
from espnet2_sepx.separators.dsn import DSNSeparator

SEGMENT_MS, SEGMENT_HOP_MS = 96.0, 48.0
HALVINGS = 40
"""Of the interval in which a price is looked for."""


@dataclass(frozen=True)
class Utterance:
    """A mixture (1, N) and its references (N,)."""

    mixture: Tensor
    references: list[np.ndarray]


@dataclass(frozen=True)
class Pass:
    """All utterances under one budget."""

    utilization: float
    macs: float
    """Per second."""
    si_snri: float | None
    """Mean over speakers, dB; None if no pair can be scored."""
    tracks: list[Tensor]
    """Widths (T,) of each utterance."""
    logits: list[Tensor | None]
    """Of the gate, (T, K)."""


def read_utterances(data_dir: Path, fs: int, limit: int | None) -> list[Utterance]:
    """Mixtures of a data folder with their references, at most ``limit``, evenly spread."""
    mixtures = read_scp(data_dir / "wav.scp")
    speakers = [read_scp(path) for path in sorted(data_dir.glob("spk[0-9]*.scp"))]
    found = []
    for key in spread(list(mixtures), limit):
        mixture = recording(mixtures[key], fs)
        references = [reference(scp[key], fs, mixture.shape[1]) for scp in speakers]
        found.append(Utterance(mixture, references))
    return found


def measure_budgets(
    model: nn.Module, utterances: Sequence[Utterance], fs: int, budgets: Sequence[float]
) -> dict[str, Any]:
    """The content of ``budgets.json``.

    Args:
        model: an ESPnet ``enh`` model with a ``DSNSeparator``, in eval mode.
        utterances: to separate.
        fs: in Hz.
        budgets: mean utilisations.

    Returns:
        ``levels``, ``utterances``, ``points`` (``kind`` "gate", "priced gate" or "one width",
        ``price``, ``utilization``, ``macs`` per second, ``si_snri``) and ``segments`` (per class of
        segment: ``frames``, ``utilization`` and the ``share`` of each level, of the gate as
        trained). Without a gate there is one width only, and no segments.
    """
    separator = model.separator
    assert isinstance(separator, DSNSeparator)
    fixed = _fixed_macs(model, separator, utterances[0], fs)
    points, segments = [], None

    def add(kind: str, price: float | None = None, width: float | None = None) -> Pass:
        separator.compute_price = price or 0.0
        separator.external_utilization = width
        done = _run(model, separator, utterances, fs, fixed, kind)
        point = {"kind": kind, "price": price, "utilization": done.utilization}
        points.append({**point, "macs": done.macs, "si_snri": done.si_snri})
        return done

    trained_price, trained_width = separator.compute_price, separator.external_utilization
    try:
        if separator.gate is not None:
            own = add("gate", 0.0)
            segments = _by_segment(own.tracks, utterances, separator.levels, model, fs)
            logits = torch.cat([found for found in own.logits if found is not None])
            low, high = separator.levels[0], separator.levels[-1]
            for budget in budgets:
                if low < budget < high:
                    add("priced gate", price_of(logits, separator.levels, budget))
        widths = {*separator.levels, *(b for b in budgets if b <= separator.levels[-1])}
        for width in sorted(widths):
            add("one width", width=width)
    finally:
        separator.compute_price = trained_price
        separator.external_utilization = trained_width
    return {
        "levels": list(separator.levels),
        "utterances": len(utterances),
        "points": points,
        "segments": segments,
    }


def price_of(logits: Tensor, levels: Sequence[float], budget: float) -> float:
    """The price of width at which the gate's mean utilisation comes closest to a budget.

    Args:
        logits: of all frames, (T, K).
        levels: widths of the K levels.
        budget: mean utilisation.
    """
    widths = logits.new_tensor(levels)

    def mean(price: float) -> float:
        return widths[(logits - price * widths).argmax(-1)].mean().item()

    gap = (levels[-1] - levels[0]) / (len(levels) - 1)
    bound = 1.0 + float(logits.max() - logits.min()) / gap * len(levels)
    low, high = -bound, bound  # mean falls with the price
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if mean(middle) > budget:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda price: abs(mean(price) - budget))


def _fixed_macs(model: nn.Module, separator: DSNSeparator, utterance: Utterance, fs: int) -> float:
    """Per sample, what does not depend on widths."""
    separator.record_cost = True
    work = count_macs(model, partial(separate, model, utterance.mixture, fs)).total.all
    separator.record_cost = False
    assert separator.last_cost is not None
    return (work - separator.last_cost.executed.sum().item()) / utterance.mixture.shape[1]


def _run(
    model: nn.Module,
    separator: DSNSeparator,
    utterances: Sequence[Utterance],
    fs: int,
    fixed: float,
    name: str,
) -> Pass:
    separator.record_cost = separator.record_utilization = True
    tracks, logits, gains = [], [], []
    executed, samples = 0.0, 0
    try:
        for utterance in tqdm(utterances, desc=name, unit="utt", file=sys.stderr):
            estimates = [wave[0].numpy() for wave in separate(model, utterance.mixture, fs)]
            gains += _gains(utterance, estimates)
            assert separator.last_cost is not None
            assert separator.last_utilization is not None
            executed += separator.last_cost.executed.sum().item()
            samples += utterance.mixture.shape[1]
            tracks.append(separator.last_utilization.utilization[0])
            found = separator.last_utilization.logits
            logits.append(None if found is None else found[0])
    finally:
        separator.record_cost = separator.record_utilization = False
    return Pass(
        utilization=torch.cat(tracks).mean().item(),
        macs=(fixed + executed / samples) * fs,
        si_snri=float(np.mean(gains)) if gains else None,
        tracks=tracks,
        logits=logits,
    )


def _gains(utterance: Utterance, estimates: list[np.ndarray]) -> list[float]:
    """SI-SNR improvement of each speaker that can be scored, in dB."""
    mixture = utterance.mixture[0].double().numpy()
    references = [signal.astype(np.float64) for signal in utterance.references]
    estimates = [signal.astype(np.float64) for signal in estimates]
    order = permutation_by_si_snr(references, estimates)
    pairs = [(signal, estimates[index]) for signal, index in zip(references, order, strict=True)]
    return [
        si_snr(signal, estimate) - si_snr(signal, mixture)
        for signal, estimate in pairs
        if pair_defect(signal, estimate) is None
    ]


def activity_of_frames(
    references: Sequence[np.ndarray], frames: int, model: Any, fs: int
) -> Tensor:
    """Who is active in each of T frames of the model's encoder, bool (J, T)."""
    segmenter = Segmenter.of_ms(SEGMENT_MS, SEGMENT_HOP_MS, fs)
    waves = [torch.from_numpy(np.asarray(signal))[None] for signal in references]
    activity = segmenter.activity(waves)
    hop, size, before = framing(model)
    nearest = segmenter.of_frames(frames, activity.shape[-1], size - 2 * before, hop, activity)
    return activity[0, :, nearest]


def _by_segment(
    tracks: Sequence[Tensor],
    utterances: Iterable[Utterance],
    levels: Sequence[float],
    model: nn.Module,
    fs: int,
) -> dict[str, Any]:
    widths = torch.cat(list(tracks))
    classes = torch.cat(
        [
            segment_class(activity_of_frames(utterance.references, len(track), model, fs)[None])[0]
            for utterance, track in zip(utterances, tracks, strict=True)
        ]
    )
    found = {}
    for index, name in enumerate(CLASSES):
        chosen = widths[classes == index]
        entry: dict[str, Any] = {"frames": len(chosen)}
        if len(chosen):
            nearest = (chosen[:, None] - chosen.new_tensor(levels)).abs().argmin(1)
            counts = torch.bincount(nearest, minlength=len(levels))
            entry["utilization"] = chosen.mean().item()
            entry["share"] = (counts / len(chosen)).tolist()
        found[name] = entry
    return found
