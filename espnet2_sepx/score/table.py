"""Scores of a whole set, one row per utterance.

Files are paired by utterance: ``wav.scp`` (mixture) and ``spk<n>.scp`` (references) of a data
folder with ``spk<n>.scp`` of a folder of separated audio. Lengths may differ by up to 32 ms (one
analysis frame, what framing without a trim can cost) and are cut to the shortest; a larger
difference, another sampling rate and more than one channel are errors that name the file.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from espnet2_sepx.data.kaldi import read_scp
from espnet2_sepx.errors import UserError
from espnet2_sepx.files import atomic_write
from espnet2_sepx.parallel import map_in_processes
from espnet2_sepx.score.metrics import METRICS, Signal, Unscorable, compute
from espnet2_sepx.score.permute import permutation_by_si_snr

LENGTH_TOLERANCE_S = 0.032
CLIPPED_SHARE = 1e-3  # of the samples of an estimate, from which on a note says so


@dataclass(frozen=True)
class Utterance:
    """What has to be scored: paths of the mixture, and per speaker of reference and estimate."""

    utt: str
    mixture: str
    references: tuple[str, ...]
    estimates: tuple[str, ...]
    overlap: float | None = None


@dataclass
class Row:
    """Scores of one utterance.

    Attributes:
        permutation: index of the estimate for each reference.
        values: per column (``si_snr``, ``si_snri``, ...) one value per reference, None = missing.
        notes: why values are missing, and what else deserves a look.
    """

    utt: str
    seconds: float
    overlap: float | None
    permutation: tuple[int, ...]
    values: dict[str, list[float | None]]
    notes: list[str] = field(default_factory=list)

    def mean(self, column: str) -> float | None:
        """Mean over the speakers; missing when any of them is, so that no mean is flattered."""
        present = [value for value in self.values[column] if value is not None]
        return float(np.mean(present)) if len(present) == len(self.values[column]) else None


# --- what to score -------------------------------------------------------------------------------


def list_utterances(reference_dir: str | Path, estimate_dir: str | Path) -> list[Utterance]:
    """Pair the files of a data folder with separated ones, in the order of ``wav.scp``."""
    reference_dir, estimate_dir = Path(reference_dir), Path(estimate_dir)
    mixtures = read_scp(reference_dir / "wav.scp")
    if not mixtures:
        raise UserError(f"{reference_dir / 'wav.scp'}: no utterances; prepare the data again")
    references = _speakers(reference_dir)
    for n, paths in enumerate(references, start=1):
        _require(mixtures, paths, reference_dir / f"spk{n}.scp", "prepare the data again")
    estimates = []
    for n in range(1, len(references) + 1):
        scp = estimate_dir / f"spk{n}.scp"
        if not scp.is_file():
            raise UserError(
                f"{scp}: not found, the references have {len(references)} speakers; "
                "separate the set first (stage 4) with a model for as many speakers"
            )
        estimates.append(read_scp(scp))
        _require(mixtures, estimates[-1], scp, "separate the whole set again (stage 4)")
    overlap = _read_overlap(reference_dir / "utt2overlap")
    return [
        Utterance(
            utt,
            mixture,
            tuple(paths[utt] for paths in references),
            tuple(paths[utt] for paths in estimates),
            overlap.get(utt),
        )
        for utt, mixture in mixtures.items()
    ]


def _speakers(folder: Path) -> list[dict[str, str]]:
    """Contents of ``spk1.scp``, ``spk2.scp``, ... as far as they go."""
    speakers: list[dict[str, str]] = []
    while (scp := folder / f"spk{len(speakers) + 1}.scp").is_file():
        speakers.append(read_scp(scp))
    if not speakers:
        raise UserError(f"{folder / 'spk1.scp'}: not found; give a folder with clean references")
    return speakers


def _require(wanted: dict[str, str], available: dict[str, str], scp: Path, remedy: str) -> None:
    missing = [utt for utt in wanted if utt not in available]
    if missing:
        raise UserError(
            f"{scp}: {len(missing)} of {len(wanted)} utterances are missing "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); {remedy}"
        )


def _read_overlap(path: Path) -> dict[str, float]:
    """Overlap ratios, none if the file does not exist."""
    if not path.is_file():
        return {}
    ratios = {}
    for utt, text in read_scp(path).items():
        try:
            ratios[utt] = float(text)
        except ValueError:
            ratios[utt] = -1.0
        if not 0 <= ratios[utt] <= 1:
            raise UserError(f"{path}: {utt}: expected a ratio in 0..1, got {text!r}; correct it")
    return ratios


def sample_rate_of(path: str) -> int:
    """Sampling rate in the header of an audio file."""
    try:
        return int(soundfile.info(path).samplerate)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(_unreadable(path)) from error


# --- scoring -------------------------------------------------------------------------------------


def score_utterances(
    utterances: list[Utterance], sample_rate: int, metrics: list[str], nj: int = 1
) -> list[Row]:
    """Score utterances in ``nj`` processes; the result does not depend on their number."""
    jobs = [(utterance, sample_rate, tuple(metrics)) for utterance in utterances]
    return list(map_in_processes(_score_job, jobs, nj, "score", "utt"))


def _score_job(job: tuple[Utterance, int, tuple[str, ...]]) -> Row:
    return score_utterance(*job)


def score_utterance(utterance: Utterance, sample_rate: int, metrics: tuple[str, ...]) -> Row:
    """All metrics of one utterance, under the permutation that SI-SNR prefers."""
    mixture, references, estimates, notes = _read_aligned(utterance, sample_rate)
    order = permutation_by_si_snr(references, estimates)
    values: dict[str, list[float | None]] = {
        column: [] for name in metrics for column in METRICS[name].columns
    }
    failures: dict[str, list[str]] = {}
    for index, reference in enumerate(references):
        for name in metrics:
            column, *improvement = METRICS[name].columns
            value = base = None
            try:
                value = compute(name, reference, estimates[order[index]], sample_rate)
                if improvement:
                    base = compute(name, reference, mixture, sample_rate)
            except Unscorable as reason:
                where = f"spk{index + 1}" if value is None else f"spk{index + 1} against mixture"
                failures.setdefault(f"{where}: {reason}", []).append(name)
            values[column].append(value)
            for improved in improvement:
                values[improved].append(None if value is None or base is None else value - base)
    notes += [f"{reason} ({' '.join(names)})" for reason, names in failures.items()]
    seconds = len(mixture) / sample_rate
    return Row(utterance.utt, seconds, utterance.overlap, order, values, notes)


def _read_aligned(
    utterance: Utterance, sample_rate: int
) -> tuple[Signal, list[Signal], list[Signal], list[str]]:
    """Mixture, references and estimates in equal length, and notes about them."""
    paths = [utterance.mixture, *utterance.references, *utterance.estimates]
    signals = [_read(path, sample_rate) for path in paths]
    length = len(signals[0])
    tolerance = int(LENGTH_TOLERANCE_S * sample_rate)
    for path, signal in zip(paths, signals, strict=True):
        if abs(len(signal) - length) > tolerance:
            raise UserError(
                f"{path}: {len(signal)} samples, but {paths[0]} has {length}; "
                f"lengths may differ by {tolerance} samples at most, is it the right file?"
            )
    notes = []
    shortest = min(len(signal) for signal in signals)
    longest = max(len(signal) for signal in signals)
    if shortest < longest:
        notes.append(f"lengths differ: cut to {shortest} of up to {longest} samples")
    signals = [signal[:shortest] for signal in signals]
    speakers = len(utterance.references)
    estimates = signals[1 + speakers :]
    for n, estimate in enumerate(estimates, start=1):
        # 16-bit files end at 32767/32768.
        share = float(np.mean(np.abs(estimate) >= 32767 / 32768)) if estimate.size else 0.0
        if share > CLIPPED_SHARE:
            notes.append(f"estimate {n} is clipped ({100 * share:.1f} % of the samples)")
    return signals[0], signals[1 : 1 + speakers], estimates, notes


def _read(path: str, sample_rate: int) -> Signal:
    try:
        audio, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(_unreadable(path)) from error
    if rate != sample_rate:
        raise UserError(
            f"{path}: {rate} Hz, expected {sample_rate} Hz; references and estimates must have "
            "the same rate (check --fs, or format the data again with stage 2)"
        )
    if audio.shape[1] != 1:
        raise UserError(
            f"{path}: {audio.shape[1]} channels, expected one; extract the channel to score"
        )
    return np.ascontiguousarray(audio[:, 0])


def _unreadable(path: str) -> str:
    if not Path(path).is_file():
        return f"{path}: not found; make it again, or correct the scp file that names it"
    return f"{path}: not an audio file that libsndfile can read; make it again"


# --- the table on disk ---------------------------------------------------------------------------


def write_table(path: str | Path, rows: list[Row]) -> None:
    """Write ``utterances.csv``; the columns are those of the rows' metrics.

    ``permutation`` holds the number (from 1) of the estimate for reference 1, 2, ...; an empty cell
    is a missing value and ``note`` says why.
    """
    columns = list(rows[0].values)
    speakers = range(len(rows[0].permutation))
    header = ["utt", "seconds", "overlap", "permutation"]
    for column in columns:
        header += [*(f"{column}_spk{n + 1}" for n in speakers), column]
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*header, "note"])
        for row in rows:
            cells: list[Any] = [row.utt, f"{row.seconds:.3f}", _cell(row.overlap)]
            cells.append(" ".join(str(index + 1) for index in row.permutation))
            for column in columns:
                cells += [*map(_cell, row.values[column]), _cell(row.mean(column))]
            writer.writerow([*cells, "; ".join(row.notes)])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
