"""Which expert each frame and each band chose: the routing picture of TF-MoE (paper, Fig. 2).

A token is one cell (frame, band), so a layer decides a map of T x K cells. The paper's bars are
aggregates of such maps; it does not say how they are made, here they are

* bottom bar (T,): mode over the bands of the experts of the T-module,
* right bar (K,): mode over the frames of the experts of the F-module,

each with its agreement, the share of cells that equal the mode, without which a bar says little.

Legend: B batch, T frames, K bands, J experts per token, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from espnet2_sepx.report.model import load_model

FIGURE_FRAMES = 100  # per part of the figure's input, as in the paper
MIN_FRAMES = 20  # of a part; below it a picture shows nothing
ACTIVE_RANGE_DB = 35.0  # below the loudest 10 ms, all else is silence
PITCH_RANGE_HZ = (60, 400)
STARVED_SHARE = 0.05  # times 1/E: an expert with less is (nearly) dead

Signal = NDArray[np.float64]
Index = NDArray[np.int64]


class Record(Protocol):
    """What a separator's ``last_routing`` holds (``espnet2_sepx.layers.moe.RoutingRecord``)."""

    axis: str  # "time" | "frequency"
    block: int  # from 1
    ffn: int  # 1 | 2
    expert: Any  # int tensor (B, T, K, J), best expert first
    valid: Any  # bool tensor (B, T)


@dataclass(frozen=True, order=True)
class Layer:
    """Place of a routed layer in the model."""

    block: int
    ffn: int
    axis: str

    @property
    def module(self) -> str:
        return "T" if self.axis == "time" else "F"

    def __str__(self) -> str:
        return f"{self.module}-module, block {self.block}, FFN {self.ffn}"


@dataclass(frozen=True)
class RoutingMap:
    """Best expert of every cell of one layer, and the bar of the paper's figure."""

    layer: Layer
    expert_TK: Index
    bar: Index
    agreement: float


@dataclass(frozen=True)
class FigureInput:
    """One speaker alone, both, the other alone; nothing of it is silent."""

    utt: str
    signal: Signal
    fs: int
    starts: tuple[int, int, int]  # of the parts, in samples
    names: tuple[str, str, str]
    pitch_ratio: float  # of the higher to the lower voice


@dataclass(frozen=True)
class Share:
    """How often each expert of one layer was chosen, over a number of mixtures."""

    layer: Layer
    share_E: NDArray[np.float64]
    tokens: int

    @property
    def starved(self) -> list[int]:
        """Experts (from 0) below ``STARVED_SHARE`` of an even share."""
        return np.flatnonzero(self.share_E < STARVED_SHARE / len(self.share_E)).tolist()

    @property
    def never(self) -> list[int]:
        """Experts (from 0) that were not chosen once."""
        return np.flatnonzero(self.share_E == 0).tolist()


# --- records to pictures -------------------------------------------------------------------------


def layer_of(record: Record) -> Layer:
    return Layer(record.block, record.ffn, record.axis)


def routing_map(record: Record, item: int = 0) -> RoutingMap:
    """Map, bar and agreement of one batch item; padded frames are left out."""
    valid_T = np.asarray(record.valid[item], dtype=bool)
    expert_TK = np.asarray(record.expert[item, ..., 0], dtype=np.int64)[valid_T]
    bar = mode(expert_TK if record.axis == "time" else expert_TK.T)
    spread = bar[:, None] if record.axis == "time" else bar[None, :]
    return RoutingMap(layer_of(record), expert_TK, bar, float((expert_TK == spread).mean()))


def mode(values: Index) -> Index:
    """Most frequent value of each row; the lowest of equally frequent ones. (L, M) -> (L,)."""
    counts = np.zeros((len(values), int(values.max()) + 1), dtype=np.int64)
    np.add.at(counts, (np.arange(len(values))[:, None], values), 1)
    return counts.argmax(axis=1)


def count_choices(record: Record, num_experts: int) -> NDArray[np.int64]:
    """Valid tokens (all J choices) per expert, (E,)."""
    valid_BT = np.asarray(record.valid, dtype=bool)
    chosen = np.asarray(record.expert, dtype=np.int64)[valid_BT]
    return np.bincount(chosen.ravel(), minlength=num_experts)


def expert_shares(passes: Iterable[Sequence[Record]], num_experts: dict[str, int]) -> list[Share]:
    """Shares per layer over several forward passes.

    Args:
        passes: the records of each pass.
        num_experts: E of each axis.
    """
    counts: dict[Layer, NDArray[np.int64]] = {}
    for records in passes:
        for record in records:
            found = count_choices(record, num_experts[record.axis])
            layer = layer_of(record)
            counts[layer] = counts.get(layer, np.zeros_like(found)) + found
    ordered = sorted(counts, key=lambda layer: (layer.module != "T", layer.block, layer.ffn))
    return [
        Share(layer, counts[layer] / max(counts[layer].sum(), 1), int(counts[layer].sum()))
        for layer in ordered
    ]


def figure_block(num_blocks: int) -> int:
    """The paper shows block 5 of 6: the last but one."""
    return max(1, num_blocks - 1)


# --- the input of the figure ---------------------------------------------------------------------


def active_part(signal: Signal, fs: int) -> Signal:
    """The signal without its silent stretches (10 ms steps)."""
    step = max(1, fs // 100)
    frames = signal[: len(signal) // step * step].reshape(-1, step)
    if not len(frames):
        return signal[:0]
    power = (frames**2).mean(axis=1)
    loud = power > power.max() * 10 ** (-ACTIVE_RANGE_DB / 10)
    return frames[loud].ravel() if power.max() > 0 else signal[:0]


def three_parts(utt: str, references: Sequence[Signal], fs: int, hop: int) -> FigureInput | None:
    """Higher voice only, both, lower voice only, of equal length and without silence.

    The paper shows a female and a male voice. Sexes are not part of a data folder, pitch can be
    measured: the higher voice comes first and both are named by their pitch. Every part has
    ``FIGURE_FRAMES`` frames, fewer if one of the speakers says less than twice that.

    Returns:
        None if there is too little speech for a picture.
    """
    voices = [active_part(signal, fs) for signal in references[:2]]
    part = min(FIGURE_FRAMES * hop, *(len(voice) // 2 for voice in voices)) // hop * hop
    if part < MIN_FRAMES * hop:
        return None
    (high, first), (low, second) = sorted(
        ((median_pitch(voice, fs), voice) for voice in voices), key=lambda pair: -pair[0]
    )
    signal = np.concatenate(
        [first[:part], first[part : 2 * part] + second[:part], second[part : 2 * part]]
    )
    names = (f"higher voice ({high:.0f} Hz)", "both", f"lower voice ({low:.0f} Hz)")
    return FigureInput(utt, signal, fs, (0, part, 2 * part), names, high / low if low else 1.0)


def median_pitch(signal: Signal, fs: int) -> float:
    """Median fundamental frequency of the voiced 40 ms frames in Hz, 0 if there are none.

    Autocorrelation, normalised by the frame's energy; good enough to order two voices.
    """
    width, step = fs // 25, fs // 50
    if len(signal) < width:
        return 0.0
    frames = np.lib.stride_tricks.sliding_window_view(signal, width)[::step]
    frames = (frames - frames.mean(axis=1, keepdims=True)) * np.hanning(width)
    power = np.abs(np.fft.rfft(frames, 2 * width, axis=1)) ** 2
    correlation = np.fft.irfft(power, axis=1)[:, :width]
    # A window tapers the correlation; dividing by its own undoes the bias towards short lags.
    taper = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(width), 2 * width)) ** 2)[:width]
    shortest, longest = fs // PITCH_RANGE_HZ[1], fs // PITCH_RANGE_HZ[0]
    scaled = correlation[:, shortest:longest] / (taper[shortest:longest] / taper[0])
    scaled /= np.maximum(correlation[:, :1], 1e-12)
    # The first lag nearly as good as the best is the period, later ones are its multiples.
    lag = shortest + (scaled > 0.9 * scaled.max(axis=1, keepdims=True)).argmax(axis=1)
    voiced = scaled.max(axis=1) > 0.6
    return float(np.median(fs / lag[voiced])) if voiced.any() else 0.0


# --- the model -----------------------------------------------------------------------------------


class Router:
    """A trained system that tells its routing."""

    def __init__(self, config: Path, model_file: Path) -> None:
        self._separate = load_model(config, model_file)
        self.separator: Any = self._separate.enh_model.separator
        self.separator.record_routing = True

    @property
    def num_experts(self) -> dict[str, int]:
        """E of each axis, as configured (one number, or a time and a frequency one)."""
        conf = self._separate.enh_train_args.separator_conf
        experts = conf["num_experts"]
        time, frequency = (experts, experts) if isinstance(experts, int) else experts
        return {"time": int(time), "frequency": int(frequency)}

    def __call__(self, signal: Signal, fs: int) -> list[Record]:
        """Separate one mixture and return the records of its routed layers."""
        self._separate(signal[None].astype(np.float32), fs=fs)
        return list(self.separator.last_routing)
