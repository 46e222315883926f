"""What a separated signal is worth: SI-SNR, SDR, PESQ, STOI and ESTOI of one pair of signals.

Every function takes two one-dimensional float arrays of equal length and returns one float, or
raises ``Unscorable`` with the reason. The rules, the same for all metrics:

* **Silence.** A reference is silent when, its mean removed, its RMS is at most 1e-5 (-100 dBFS, the
  noise floor of 16-bit audio). The level of an estimate is free, so an estimate is silent only when
  it is constant to 1e-9. Nothing is scored against a silent reference or for a silent estimate:
  every such pair is unscorable for every metric, and so missing.
* **Not finite.** A signal with NaN or infinite samples is unscorable.
* **Too short.** SDR needs 1024 samples (twice the taps of its filter, fewer could fit anything),
  PESQ 0.25 s, STOI and ESTOI 30 frames (0.4 s) of speech after their own silence removal.
* **Too long.** PESQ is limited to 20 s: the ITU code keeps a table of 50 utterances, each at least
  0.2 s with 0.2 s of pause, and writes past its end without a check (wrong values or a crash).
* **Ceiling.** SI-SNR and SDR are limited to +-100 dB, so that a perfect estimate has a number.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espnet2_sepx.errors import UserError

Signal = NDArray[np.float64]

REFERENCE_SILENCE_RMS = 1e-5
ESTIMATE_SILENCE_RMS = 1e-9
MAX_DB = 100.0
SDR_TAPS = 512  # BSSEval v3
SDR_MIN_SAMPLES = 2 * SDR_TAPS
PESQ_MAX_SECONDS = 20.0
PESQ_MODES = {8000: "nb", 16000: "wb"}


class Unscorable(Exception):
    """A metric has no value for this pair; the message says why."""


@dataclass(frozen=True)
class Metric:
    """A metric that can be asked for, and what it needs.

    Attributes:
        columns: what it adds to the tables; a second column is the improvement over the mixture.
        titles: the columns for human readers.
        module: the optional module it is computed with, None when there is none.
        extra: the extra of this package that installs the module.
    """

    columns: tuple[str, ...]
    titles: tuple[str, ...]
    module: str | None = None
    extra: str | None = None

    def unavailable(self) -> str | None:
        """Why the metric cannot be computed here, None when it can."""
        if self.module is None or importlib.util.find_spec(self.module) is not None:
            return None
        return f'{self.module} is not installed; pip install "espnet2_sepx[{self.extra}]"'


METRICS = {
    "si_snr": Metric(("si_snr", "si_snri"), ("SI-SNR (dB)", "SI-SNRi (dB)")),
    "sdr": Metric(("sdr", "sdri"), ("SDR (dB)", "SDRi (dB)"), "fast_bss_eval", "score"),
    "stoi": Metric(("stoi",), ("STOI",), "pystoi", "score"),
    "estoi": Metric(("estoi",), ("ESTOI",), "pystoi", "score"),
    "pesq": Metric(("pesq",), ("PESQ",), "pesq", "pesq"),
}
TITLES = {
    column: title
    for metric in METRICS.values()
    for column, title in zip(metric.columns, metric.titles, strict=True)
}


def choose_metrics(
    asked: Iterable[str] | None, sample_rate: int
) -> tuple[list[str], dict[str, str]]:
    """Metrics to compute, in the order of ``METRICS``, and those left out with the reason.

    What is asked for by name must be possible; by default, everything possible is computed.

    Args:
        asked: names in ``METRICS``, None for the default.
        sample_rate: of the signals, in Hz.
    """
    names = list(METRICS) if asked is None else list(asked)
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"--metrics: unknown {unknown[0]!r}; choose from {' '.join(METRICS)}")
    impossible = {}
    for name in names:
        reason = METRICS[name].unavailable()
        if reason is None and name == "pesq" and sample_rate not in PESQ_MODES:
            reason = f"PESQ is defined at 8000 and 16000 Hz, the signals are at {sample_rate} Hz"
        if reason is not None:
            impossible[name] = reason
    if asked is not None and impossible:
        name, reason = next(iter(impossible.items()))
        raise UserError(f"--metrics {name}: {reason}")
    return [name for name in METRICS if name in names and name not in impossible], impossible


def defect(signal: Signal, silence_rms: float) -> str | None:
    """Why a signal cannot be scored at all ("silent", ...), None when it can."""
    if signal.size == 0:
        return "empty"
    if not np.isfinite(signal).all():
        return "not finite"
    if np.sqrt(np.mean(np.square(signal - signal.mean()))) <= silence_rms:
        return "silent"
    return None


def pair_defect(reference: Signal, estimate: Signal) -> str | None:
    """Why a pair cannot be scored at all, None when it can."""
    reason = defect(reference, REFERENCE_SILENCE_RMS)
    if reason is not None:
        return f"{reason} reference"
    reason = defect(estimate, ESTIMATE_SILENCE_RMS)
    return f"{reason} estimate" if reason is not None else None


def _check(reference: Signal, estimate: Signal) -> None:
    if reference.ndim != 1 or reference.shape != estimate.shape:
        raise ValueError(
            "reference and estimate must be one-dimensional and equally long, "
            f"got {reference.shape} and {estimate.shape}"
        )
    reason = pair_defect(reference, estimate)
    if reason is not None:
        raise Unscorable(reason)


def si_snr(reference: Signal, estimate: Signal) -> float:
    """Scale-invariant signal-to-noise ratio in dB, means removed (zero-mean SI-SDR)."""
    _check(reference, estimate)
    # Unit norm first: the result cannot depend on the level, however small.
    reference = reference - reference.mean()
    reference = reference / np.linalg.norm(reference)
    estimate = estimate - estimate.mean()
    estimate = estimate / np.linalg.norm(estimate)
    target = np.dot(reference, estimate) * reference
    floor = 10 ** (-MAX_DB / 10)
    signal_power = max(float(np.sum(np.square(target))), floor)
    noise_power = max(float(np.sum(np.square(estimate - target))), floor)
    return float(np.clip(10 * np.log10(signal_power / noise_power), -MAX_DB, MAX_DB))


def sdr(reference: Signal, estimate: Signal) -> float:
    """BSSEval v3 signal-to-distortion ratio in dB: any 512-tap filter of the reference is target.

    In version 3 the target depends on the speaker's own reference only, so other references do
    not enter.
    """
    _check(reference, estimate)
    if reference.size < SDR_MIN_SAMPLES:
        raise Unscorable(f"shorter than {SDR_MIN_SAMPLES} samples")
    from fast_bss_eval.numpy.metrics import sdr_loss

    try:  # pairwise, because the other form misreads its argument under NumPy 2
        loss = sdr_loss(
            estimate[None], reference[None], filter_length=SDR_TAPS, clamp_db=MAX_DB, pairwise=True
        )
    except np.linalg.LinAlgError as error:  # e.g. a pure tone: 512 shifts are not independent
        raise Unscorable("the spectrum of the reference has gaps") from error
    if not np.isfinite(loss).all():
        raise Unscorable("the spectrum of the reference has gaps")
    return -float(loss.item())


def pesq(reference: Signal, estimate: Signal, sample_rate: int) -> float:
    """PESQ (MOS-LQO): narrow band (P.862.1) at 8000 Hz, wide band (P.862.2) at 16000 Hz."""
    _check(reference, estimate)
    if sample_rate not in PESQ_MODES:
        raise Unscorable(f"not defined at {sample_rate} Hz")
    if reference.size > PESQ_MAX_SECONDS * sample_rate:
        raise Unscorable(f"longer than {PESQ_MAX_SECONDS:g} s")
    import pesq as itu

    try:
        value = itu.pesq(sample_rate, reference, estimate, PESQ_MODES[sample_rate])
    except itu.PesqError as error:
        reason = error.args[0] if error.args else error
        raise Unscorable(reason.decode() if isinstance(reason, bytes) else str(reason)) from error
    if not np.isfinite(value):
        raise Unscorable("undefined")
    return float(value)


def stoi(reference: Signal, estimate: Signal, sample_rate: int, extended: bool = False) -> float:
    """Short-time objective intelligibility, 0..1; ``extended`` gives ESTOI."""
    _check(reference, estimate)
    import pystoi

    with warnings.catch_warnings():
        # pystoi returns 1e-5 for too little speech, with this warning as the only sign.
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
        try:
            value = pystoi.stoi(reference, estimate, sample_rate, extended=extended)
        except (RuntimeWarning, ValueError) as error:  # ValueError: shorter than one frame
            raise Unscorable("less than 30 frames of speech") from error
    if not np.isfinite(value):
        raise Unscorable("undefined")
    return float(value)


def compute(name: str, reference: Signal, estimate: Signal, sample_rate: int) -> float:
    """Value of a metric by its name in ``METRICS``."""
    if name == "si_snr":
        return si_snr(reference, estimate)
    if name == "sdr":
        return sdr(reference, estimate)
    if name == "pesq":
        return pesq(reference, estimate, sample_rate)
    if name in ("stoi", "estoi"):
        return stoi(reference, estimate, sample_rate, extended=name == "estoi")
    raise ValueError(f"name must be one of {list(METRICS)}, got {name!r}")
