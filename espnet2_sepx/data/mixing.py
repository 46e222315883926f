"""Two-speaker mixtures in the manner of wsj0-2mix and LibriMix.

``plan`` draws a mixture and returns its line of the table; ``render`` turns such a line into
samples and is the only code that does, so that a table rebuilds the very same audio.

* Level. Each speaker is set to ``L + d`` and ``L - d`` dB (energy-gated level of what is heard in
  the mixture); L uniform in -33 ... -25 dB, as in LibriMix, d uniform in +-``level_range_db``.
* Length. ``min`` cuts the longer signal at a random place, ``max`` pads the shorter one with
  zeros; with ``overlap_ratio`` the second speaker starts later and nothing is cut.
* Noise. SNR = level of the louder speaker over the power of the noise, as in WHAM!.
* Reverberation. Both speakers are convolved with responses of one room, at different positions
  if it has several, the direct sound aligned; references are the reverberant signals.
* Peaks. A common gain keeps mixture, references and noise within 0.9.
* 16 bits. References and noise are rounded and the mixture is their sum in integers, so
  ``mixture == s1 + s2 (+ noise)`` holds exactly in the files.

Legend: N samples of the mixture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.signal import fftconvolve

from espnet2_sepx.data.loudness import active_level_db, db_to_gain, gain_to_db, power_db
from espnet2_sepx.data.metadata import DrySource, Mixture, Noise, Part
from espnet2_sepx.data.overlap import activity, delay_for_overlap, overlap_ratio
from espnet2_sepx.data.recordings import room_of
from espnet2_sepx.data.sources import PEAK, to_int16
from espnet2_sepx.errors import UserError

_LEVELS_DB = (-33.0, -25.0)
_CUT_ATTEMPTS = 8
_NO_NOISE = Noise("", 0, 0.0, 0.0)

Read = Callable[[str], np.ndarray]


class Readers(NamedTuple):
    """How to get a dry source, a noise and a room response by the names used in the table."""

    source: Read
    noise: Read
    rir: Read


@dataclasses.dataclass(frozen=True)
class MixOptions:
    """How mixtures are made; see the file header. ``overlap_ratio`` None means no shift."""

    fs: int
    mode: str = "min"
    level_range_db: float = 2.5
    overlap_ratio: tuple[float, float] | None = None
    noise_snr_db: tuple[float, float] = (0.0, 10.0)

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, got {self.mode!r}")
        if self.level_range_db < 0:
            raise ValueError(f"level_range_db must be at least 0, got {self.level_range_db}")
        if self.overlap_ratio is not None:
            low, high = self.overlap_ratio
            if not 0 <= low <= high <= 1:
                raise ValueError(f"overlap_ratio must be 0 <= min <= max <= 1, got {low} {high}")
        if self.noise_snr_db[0] > self.noise_snr_db[1]:
            raise ValueError(f"noise_snr_db must be min <= max, got {self.noise_snr_db}")


@dataclasses.dataclass(frozen=True)
class MixJob:
    """A mixture to be drawn: of which sources, and of which noises and responses one may choose.

    Everything random depends on ``seed`` alone.
    """

    utt: str
    pair: tuple[DrySource, DrySource]
    options: MixOptions
    seed: tuple[int, ...]
    noises: tuple[str, ...] = ()
    rirs: tuple[str, ...] = ()


class Signals(NamedTuple):
    """Samples of a mixture, ``(N,)`` int16 each; ``noise`` is None where there is none."""

    mix: np.ndarray
    s1: np.ndarray
    s2: np.ndarray
    noise: np.ndarray | None


def render(row: Mixture, read: Readers) -> Signals:
    """The audio of one line of the table."""
    s1, s2 = (to_int16(_place(part, row.samples, read)) for part in (row.s1, row.s2))
    mix = s1 + s2
    if not row.noise.file:
        return Signals(mix, s1, s2, None)
    noise = to_int16(row.noise.gain * _stretch(read.noise(row.noise.file), row.noise, row.samples))
    return Signals(mix + noise, s1, s2, noise)


def _place(part: Part, samples: int, read: Readers) -> np.ndarray:
    """One speaker as heard in the mixture, ``(N,)``."""
    signal_N = np.zeros(samples)
    stretch = _image(part, read)[part.start : part.start + part.samples]
    if len(stretch) != part.samples or part.offset + part.samples > samples:
        raise UserError(f"source {part.source}: does not fit its mixture; restore metadata.csv")
    signal_N[part.offset : part.offset + part.samples] = part.gain * stretch
    return signal_N


def _image(part: Part, read: Readers) -> np.ndarray:
    """The dry source, or its reverberant image of the same length with the direct sound at 0."""
    dry = read.source(part.source)
    if not part.rir:
        return dry
    response = read.rir(part.rir)
    direct = int(np.argmax(np.abs(response)))
    return fftconvolve(dry, response)[direct : direct + len(dry)]


def _stretch(signal: np.ndarray, noise: Noise, samples: int) -> np.ndarray:
    return np.take(signal, np.arange(noise.start, noise.start + samples), mode="wrap")


def plan(job: MixJob, read: Readers) -> Mixture:
    """Draw a mixture of two dry sources."""
    rng, options = np.random.default_rng(job.seed), job.options
    parts = [
        Part(source.source, 0, source.samples, 0, 1.0, 0.0, rir)
        for source, rir in zip(job.pair, _draw_responses(job.rirs, rng), strict=True)
    ]
    parts = _arrange(parts, options, rng, read)
    samples = max(part.offset + part.samples for part in parts)
    parts = _set_levels(parts, samples, options, rng, read)
    louder_db = max(part.level_db for part in parts)
    noise = _draw_noise(job.noises, louder_db, samples, options, rng, read)
    row = Mixture(
        utt=job.utt,
        fs=options.fs,
        samples=samples,
        seed="-".join(map(str, job.seed)),
        overlap=0.0,
        s1=parts[0],
        s2=parts[1],
        noise=noise,
    )
    row = _limit_peak(row, read)
    signals = render(row, read)
    overlap = overlap_ratio(signals.s1 / 32768, signals.s2 / 32768, options.fs)
    return dataclasses.replace(row, overlap=round(overlap, 4))


def _draw_responses(rirs: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Two responses of one room, different ones if it has them; empty names without responses."""
    if not rirs:
        return ["", ""]
    rooms = sorted({room_of(Path(rir)) for rir in rirs})
    room = rooms[rng.integers(len(rooms))]
    positions = [rir for rir in rirs if room_of(Path(rir)) == room]
    if len(positions) == 1:
        return positions * 2
    return [positions[i] for i in rng.choice(len(positions), 2, replace=False)]


def _arrange(
    parts: list[Part], options: MixOptions, rng: np.random.Generator, read: Readers
) -> list[Part]:
    """Where each signal starts, and what is cut off."""
    if options.overlap_ratio is not None:
        images = [_image(part, read) for part in parts]
        ratio = rng.uniform(*options.overlap_ratio)
        delay = delay_for_overlap(images[0], images[1], options.fs, ratio)
        return [parts[0], dataclasses.replace(parts[1], offset=delay)]
    if options.mode == "max":
        return parts
    shortest = min(part.samples for part in parts)
    return [
        dataclasses.replace(
            part, start=_draw_cut(_image(part, read), shortest, options.fs, rng), samples=shortest
        )
        for part in parts
    ]


def _draw_cut(image: np.ndarray, samples: int, fs: int, rng: np.random.Generator) -> int:
    """A start from which at least half of the stretch is active, or the best one tried."""
    best_start, best_share = 0, -1.0
    for start in rng.integers(0, len(image) - samples + 1, _CUT_ATTEMPTS).tolist():
        share = float(np.mean(activity(image[start : start + samples], fs)))
        if share >= 0.5:
            return start
        if share > best_share:
            best_start, best_share = start, share
    return best_start


def _set_levels(
    parts: list[Part],
    samples: int,
    options: MixOptions,
    rng: np.random.Generator,
    read: Readers,
) -> list[Part]:
    level = rng.uniform(*_LEVELS_DB)
    difference = rng.uniform(-options.level_range_db, options.level_range_db)
    levelled = []
    for part, target in zip(parts, (level + difference, level - difference), strict=True):
        now = active_level_db(_place(part, samples, read), options.fs)
        gain = db_to_gain(target - now)
        levelled.append(dataclasses.replace(part, gain=gain, level_db=target))
    return levelled


def _draw_noise(
    noises: Sequence[str],
    speech_db: float,
    samples: int,
    options: MixOptions,
    rng: np.random.Generator,
    read: Readers,
) -> Noise:
    if not noises:
        return _NO_NOISE
    file = noises[int(rng.integers(len(noises)))]
    snr_db = float(rng.uniform(*options.noise_snr_db))
    signal = read.noise(file)
    for start in rng.integers(0, max(1, len(signal) - samples), _CUT_ATTEMPTS).tolist():
        noise = Noise(file, start, 1.0, snr_db)
        now = power_db(_stretch(signal, noise, samples))
        if now > -80.0:
            return dataclasses.replace(noise, gain=db_to_gain(speech_db - snr_db - now))
    raise UserError(f"{file}: noise is silent for long stretches; remove the file from --noise_dir")


def _limit_peak(row: Mixture, read: Readers) -> Mixture:
    """Lower all gains together where mixture, a reference or the noise would exceed 0.9."""
    signals = [_place(part, row.samples, read) for part in (row.s1, row.s2)]
    if row.noise.file:
        noise = _stretch(read.noise(row.noise.file), row.noise, row.samples)
        signals.append(row.noise.gain * noise)
    peak = max(float(np.abs(signal).max()) for signal in (*signals, sum(signals)))
    if peak <= PEAK:
        return row
    gain = PEAK / peak

    def lower(part: Part) -> Part:
        level_db = part.level_db + gain_to_db(gain)
        return dataclasses.replace(part, gain=part.gain * gain, level_db=level_db)

    noise_row = dataclasses.replace(row.noise, gain=row.noise.gain * gain)
    return dataclasses.replace(row, s1=lower(row.s1), s2=lower(row.s2), noise=noise_row)
