"""A handful of test mixtures to listen to, at comparable levels.

Levels: SI-SNR, the training objective, leaves the scale of an estimate open, so each estimate gets
the energy of the reference it belongs to. Mixture, references and estimates of one mixture then
share one gain, which brings the loudest peak to -1 dB of full scale; all share one colour scale.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espnet2_sepx.data.kaldi import read_scp
from espnet2_sepx.errors import UserError
from espnet2_sepx.report.collect import EvalSet, Row
from espnet2_sepx.report.plots import (
    FRAME_S,
    HOP_S,
    data_uri,
    spectrogram_db,
    spectrogram_png,
)

AUDIO_BUDGET = 4_500_000  # bytes of all embedded audio before base64, keeps a page below 8 MB
FLAC_BYTES_PER_SAMPLE = 1.2  # measured on speech, upper end
MAX_EXCERPT_S, MIN_EXCERPT_S = 12.0, 2.0
PEAK = 10 ** (-1 / 20)
COLUMNS = 480  # of a spectrogram; wider than it is shown on most screens

Signal = NDArray[np.float64]


@dataclass(frozen=True)
class Track:
    """One signal of an example, ready for the page."""

    role: str  # "mixture" | "reference" | "estimate"
    speaker: int  # 1-based; 0 for the mixture
    audio: str
    image: str
    note: str

    @property
    def label(self) -> str:
        if self.role == "mixture":
            return "Mixture"
        return f"{self.role.capitalize()} {self.speaker}"


@dataclass(frozen=True)
class Example:
    """One mixture with its references and estimates."""

    utt: str
    why: str
    row: Row
    fs: int
    seconds: float
    shown: float
    tracks: list[Track]

    @property
    def mixture(self) -> Track:
        return self.tracks[0]

    @property
    def speakers(self) -> list[list[Track]]:
        """Tracks of speaker 1, of speaker 2, ...: reference first, then the estimate if any."""
        count = max(track.speaker for track in self.tracks)
        return [
            [track for track in self.tracks if track.speaker == number]
            for number in range(1, count + 1)
        ]


@dataclass(frozen=True)
class Signals:
    """The audio files of one set: mixture and, by speaker, references and estimates."""

    mixture: dict[str, str]
    references: list[dict[str, str]]
    estimates: list[dict[str, str]]

    @property
    def tracks(self) -> int:
        return 1 + len(self.references) + len(self.estimates)


def open_set(evaluated: EvalSet) -> Signals | None:
    """File lists of a set whose data folder is known, None otherwise."""
    if evaluated.data is None:
        return None
    return Signals(
        read_scp(evaluated.data / "wav.scp"),
        speaker_scps(evaluated.data),
        speaker_scps(evaluated.separated) if evaluated.separated else [],
    )


def speaker_scps(folder: Path) -> list[dict[str, str]]:
    """``spk1.scp``, ``spk2.scp``, ... of a folder, as many as there are."""
    found: list[dict[str, str]] = []
    while (path := folder / f"spk{len(found) + 1}.scp").is_file():
        found.append(read_scp(path))
    return found


def choose(rows: Sequence[Row], utts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """(utterance, reason): typical, best, worst, then evenly spread ranks of SI-SNRi.

    Without scores, utterances evenly spread over the list.
    """
    known = set(utts)
    scored = sorted(
        (row["si_snri"], row["utt"])
        for row in rows
        if row.get("si_snri") is not None and row["utt"] in known
    )
    if not scored:
        spread = np.linspace(0, len(utts) - 1, min(count, len(utts))).round().astype(int)
        return [(sorted(utts)[index], "not scored") for index in spread]
    last = len(scored) - 1
    ranks = {last // 2: "typical (median)"}
    ranks.setdefault(last, "best")
    ranks.setdefault(0, "worst")
    for share in (0.25, 0.75, 0.1, 0.9, *np.linspace(0.02, 0.98, 4 * max(count, 1))):
        ranks.setdefault(round(share * last), f"better than {share:.0%}")
    return [(scored[rank][1], why) for rank, why in list(ranks.items())[:count]]


def excerpt_seconds(tracks: int, fs: int) -> float:
    """Length to embed of each signal so that ``tracks`` signals together keep to the budget."""
    fitting = AUDIO_BUDGET / (max(tracks, 1) * fs * FLAC_BYTES_PER_SAMPLE)
    return float(np.clip(fitting, MIN_EXCERPT_S, MAX_EXCERPT_S))


def make_example(
    signals: Signals, row: Row, utt: str, why: str, excerpt_s: float | None, fs: int | None
) -> Example:
    """Read, align, level and encode the signals of one mixture.

    Args:
        row: its line of ``utterances.csv`` ({} if not scored).
        excerpt_s: embed at most this much from the start.
        fs: expected sampling rate in Hz; None accepts any.
    """
    mixture, rate = read_audio(signals.mixture[utt], fs)
    references = [read_audio(scp[utt], rate)[0] for scp in signals.references if utt in scp]
    estimates = [read_audio(scp[utt], rate)[0] for scp in signals.estimates if utt in scp]
    estimates = align(references, estimates, str(row.get("permutation") or ""))
    samples = len(mixture) if excerpt_s is None else min(len(mixture), round(excerpt_s * rate))
    levelled = level(mixture, references, estimates)
    cut = [signal[:samples] for signal in levelled]
    window, hop = round(FRAME_S * rate), round(HOP_S * rate)
    levels = [spectrogram_db(signal, window, hop, COLUMNS) for signal in cut]
    top_db = max(float(part.max()) for part in levels)
    names = [("mixture", 0)]
    names += [("reference", number + 1) for number in range(len(references))]
    names += [("estimate", number + 1) for number in range(len(estimates))]
    tracks = [
        Track(
            role,
            speaker,
            data_uri(encode_flac(signal, rate), "audio/flac"),
            spectrogram_png(part, top_db),
            _note(row, role, speaker),
        )
        for (role, speaker), signal, part in zip(names, cut, levels, strict=True)
    ]
    return Example(utt, why, row, rate, len(mixture) / rate, samples / rate, tracks)


def read_audio(path: str, fs: int | None) -> tuple[Signal, int]:
    """A mono file of rate ``fs`` (any rate if None)."""
    import soundfile

    try:
        signal, rate = soundfile.read(path, dtype="float64")
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"{path}: cannot be read as audio; run stages 1, 2 and 4 again") from error
    if signal.ndim != 1:
        raise UserError(f"{path}: expected one channel, found {signal.shape[1]}; run stage 2 again")
    if fs is not None and rate != fs:
        raise UserError(f"{path}: expected {fs} Hz, found {rate} Hz; give the rate with --fs")
    return signal, int(rate)


def align(references: list[Signal], estimates: list[Signal], permutation: str) -> list[Signal]:
    """Estimates in the order of the references.

    Args:
        permutation: column of ``utterances.csv``: for each reference the number of its estimate,
            from 0 or from 1; anything else means "find out", by SI-SNR.
    """
    count = len(references)
    if len(estimates) != count or count < 2:
        return estimates
    order = [int(number) for number in re.findall(r"\d+", permutation)]
    for first in (0, 1):
        if sorted(order) == list(range(first, first + count)):
            return [estimates[number - first] for number in order]
    from espnet2_sepx.score.permute import permutation_by_si_snr

    samples = min(map(len, references + estimates))
    found = permutation_by_si_snr(
        [signal[:samples] for signal in references], [signal[:samples] for signal in estimates]
    )
    return [estimates[number] for number in found]


def level(mixture: Signal, references: list[Signal], estimates: list[Signal]) -> list[Signal]:
    """Mixture, references, estimates at one gain (see the top of this file)."""
    matched = []
    for reference, estimate in zip(references, estimates, strict=False):
        wanted, given = np.linalg.norm(reference), np.linalg.norm(estimate)
        # A silent reference or estimate has no level to be matched to; leave it as it is.
        matched.append(estimate * (wanted / given) if wanted > 0 and given > 0 else estimate)
    everything = [mixture, *references, *matched, *estimates[len(references) :]]
    peak = max(float(np.abs(signal).max(initial=0.0)) for signal in everything)
    return [signal * (PEAK / peak) for signal in everything] if peak > 0 else everything


def encode_flac(signal: Signal, fs: int) -> bytes:
    """16-bit FLAC, which every current browser plays and which halves the size of WAV."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, signal, fs, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def decibels(value: float) -> str:
    """With sign and one decimal; what rounds to zero has none."""
    text = f"{value:+.1f}"
    if float(text) == 0:
        text = "0.0"
    return text.replace("-", "\N{MINUS SIGN}") + " dB"


def _note(row: Row, role: str, speaker: int) -> str:
    def value(metric: str) -> float | None:
        return row.get(f"{metric}_spk{speaker}" if speaker else metric)

    if role == "mixture":
        score, gain = row.get("si_snr"), row.get("si_snri")
        if score is None or gain is None:
            return ""
        return f"SI-SNR {decibels(score - gain)}"
    if role == "reference":
        score, gain = value("si_snr"), value("si_snri")
        return "" if score is None or gain is None else f"in the mixture {decibels(score - gain)}"
    parts = [
        f"{label} {decibels(number)}"
        for label, metric in (("SI-SNRi", "si_snri"), ("SDRi", "sdri"))
        if (number := value(metric)) is not None
    ]
    return ", ".join(parts)
