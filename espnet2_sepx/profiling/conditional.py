"""Executed cost of a separator whose work depends on its input, over a data directory.

Every utterance is separated once under the counter, so its cost is what the operators did. The
separator's own track (``layers.cost_track``) says which frames the conditional part of it went to;
the rest is spread evenly. Frames are sorted by the number of active speakers, from the references.

Legend: T frames of the separator's input, N samples.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from espnet2_sepx.data.kaldi import read_scp
from espnet2_sepx.data.overlap import activity, block_length
from espnet2_sepx.errors import UserError
from espnet2_sepx.layers.cost_track import Conditional, CostTrack
from espnet2_sepx.profiling.inputs import recording, reference
from espnet2_sepx.profiling.macs import count_each

SEGMENTS = ("silence", "one_speaker", "overlap")
"""By the number of active speakers: none, one, more."""


@dataclass
class UtteranceCost:
    """MACs per second of one utterance."""

    seconds: float
    executed: float
    theoretical: float
    frames: np.ndarray
    """Executed during each frame, ``(T,)``; their mean is ``executed``."""
    segment: np.ndarray
    """Index into ``SEGMENTS`` of each frame, ``(T,)``."""


def conditional_separator(model: nn.Module) -> Conditional | None:
    """The part of the model that keeps the protocol; None if its work is always the same."""
    separator = getattr(model, "separator", None)
    return separator if isinstance(separator, Conditional) else None


def theoretical_macs(executed: int, separator: Conditional | None) -> float:
    """MACs if nothing had been skipped, from those counted in the pass last recorded."""
    track = None if separator is None else separator.last_cost
    if track is None:
        return float(executed)
    return executed - track.executed.sum().item() + track.densest.sum().item()


def spread(keys: Sequence[str], limit: int | None) -> list[str]:
    """At most ``limit`` keys, evenly from the whole list."""
    if limit is None or limit >= len(keys):
        return list(keys)
    return [keys[index * len(keys) // limit] for index in range(limit)]


def measure_set(
    model: nn.Module,
    run: Callable[[Tensor], Any],
    data_dir: str | Path,
    fs: int,
    limit: int | None = None,
) -> list[UtteranceCost]:
    """Cost of each utterance of a data directory with references.

    Args:
        model: with a conditional separator, in eval mode, on the CPU.
        run: separates one mixture ``(1, N)``.
        data_dir: with ``wav.scp`` and ``spk{n}.scp``.
        fs: sampling rate in Hz.
        limit: use so many utterances, evenly spread over the table.
    """
    separator = conditional_separator(model)
    if separator is None:
        raise ValueError("the model's separator must keep the protocol of layers.cost_track")
    mixtures, references = _tables(Path(data_dir))
    keys = spread(list(mixtures), limit)
    tracks: list[CostTrack | None] = []
    lengths: list[int] = []

    def runs() -> Iterator[Callable[[], Any]]:
        for key in tqdm(keys, desc="executed cost", unit="utt", file=sys.stderr):
            mixture = recording(mixtures[key], fs)
            lengths.append(mixture.shape[1])
            yield partial(run, mixture)
            tracks.append(separator.last_cost)

    separator.record_cost = True
    try:
        counts = count_each(model, runs())
    finally:
        separator.record_cost = False
    costs = []
    for key, count, track, samples in zip(keys, counts, tracks, lengths, strict=True):
        assert track is not None
        signals = [reference(table[key], fs, samples) for table in references]
        costs.append(utterance_cost(count.total.all, track, signals, fs))
    return costs


def _tables(data_dir: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Mixtures and references, which have the same keys."""
    mixtures = read_scp(data_dir / "wav.scp")
    paths = sorted(data_dir.glob("spk[0-9]*.scp"))
    if not mixtures or not paths:
        raise UserError(
            f"{data_dir}: needs utterances in wav.scp and references in spk1.scp, ... to measure "
            "the cost by number of speakers; prepare the data again"
        )
    references = [read_scp(path) for path in paths]
    for path, table in zip(paths, references, strict=True):
        if missing := [key for key in mixtures if key not in table]:
            raise UserError(
                f"{path}: lacks {len(missing)} of the keys of wav.scp, first {missing[0]!r}; "
                "prepare the data again"
            )
    return mixtures, references


def utterance_cost(
    executed: int, track: CostTrack, references: Sequence[np.ndarray], fs: int
) -> UtteranceCost:
    """Cost of one utterance.

    Args:
        executed: MACs counted.
        track: of a batch of one.
        references: N samples of each speaker.
        fs: in Hz.
    """
    seconds = len(references[0]) / fs
    track_T = track.executed[0].numpy()
    fixed = executed - track_T.sum()
    return UtteranceCost(
        seconds=seconds,
        executed=executed / seconds,
        theoretical=(fixed + track.densest[0].sum().item()) / seconds,
        frames=(fixed + len(track_T) * track_T) / seconds,
        segment=segments(references, fs, len(track_T)),
    )


def segments(references: Sequence[np.ndarray], fs: int, frames: int) -> np.ndarray:
    """Index into ``SEGMENTS`` of each of T frames that divide N samples evenly, ``(T,)``.

    A frame belongs to the 10 ms block in its middle.
    """
    active = np.sum([activity(signal, fs) for signal in references], axis=0)
    middle_T = (np.arange(frames) + 0.5) * len(references[0]) / frames
    blocks_T = np.minimum(middle_T // block_length(fs), len(active) - 1).astype(int)
    return np.minimum(active[blocks_T], len(SEGMENTS) - 1)


def summarise(costs: Sequence[UtteranceCost]) -> dict[str, Any]:
    """The ``conditional`` entry of ``cost.json``; figures in MACs per second."""
    seconds = np.concatenate([np.full(len(c.frames), c.seconds / len(c.frames)) for c in costs])
    frames = np.concatenate([cost.frames for cost in costs])
    segment = np.concatenate([cost.segment for cost in costs])
    by_segment: dict[str, Any] = {}
    for index, name in enumerate(SEGMENTS):
        chosen = segment == index
        by_segment[name] = {
            "seconds": float(seconds[chosen].sum()),
            **(distribution(frames[chosen]) if chosen.any() else {}),
        }
    return {
        "utterances": len(costs),
        "seconds": float(seconds.sum()),
        "executed": distribution([cost.executed for cost in costs]),
        "theoretical": distribution([cost.theoretical for cost in costs]),
        "by_segment": by_segment,
    }


def distribution(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    p5, p50, p95 = np.percentile(values, [5, 50, 95])
    return {
        "mean": float(np.mean(values)),
        "p5": float(p5),
        "p50": float(p50),
        "p95": float(p95),
    }
