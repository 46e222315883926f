"""Training-time cropping, speed perturbation and dynamic mixing for separation.

ESPnet's own ways each miss something we need: its chunk iterator drops utterances shorter than a
chunk (and breaks on NumPy 2.4), its ``dynamic_mixing`` preprocessor cannot crop and opens its
source list even at inference, so a packed model fails on another machine. This preprocessor goes
with ``iterator_type: sequence``: every utterance takes part, long ones are cropped at random,
short ones stay whole (ESPnet's collate function pads them and tells the model their lengths).

Random numbers come from NumPy's global generator, which ESPnet seeds per epoch and worker, so a
resumed training sees the data an uninterrupted one would have seen; and from the utterance's name,
since ESPnet gives the processes of a distributed training the same seeds: without the name, all of
them would mix the same examples.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import soundfile
from espnet2.train.preprocessor import AbsPreprocessor
from scipy.signal import resample_poly

from espnet2_sepx.data.kaldi import read_scp
from espnet2_sepx.data.partial import delayed_to_overlap, start_with_speech, windowed_noise
from espnet2_sepx.errors import UserError

_PEAK = 0.9  # full-scale limit of a mixture made here, as in wsj0-2mix


class SeparationPreprocessor(AbsPreprocessor):
    """Crop, perturb and (optionally) remix training examples; pass validation data through.

    Args:
        train: nothing is changed, and no file is opened, when False.
        sample_rate: in Hz, of all signals.
        segment_s: crop length in seconds; None keeps whole utterances.
        num_spk: references per mixture (``speech_ref1`` ... ``speech_ref{num_spk}``).
        speed_perturb_factors: playing speeds, one drawn per example (per source when mixing
            dynamically). ``[0.9, 1.0, 1.1]`` is the usual choice; None or empty is off.
        dynamic_mixing: replace each training mixture by a new one of ``num_spk`` sources of
            different speakers, drawn from ``source_scp``. The noise of the mixture on disk
            (``noise_ref1``), when loaded, is kept at its level relative to the speech.
        source_scp: Kaldi table ``<source> <path>`` of clean single-speaker files.
        source2spk: table ``<source> <speaker>``.
        gain_db: each dynamically mixed source gets a gain drawn from ``+-gain_db`` on top of an
            equal level; 2.5 makes differences of up to 5 dB, as in wsj0-2mix.
        overlap_ratio: [least, most]; one of the two speakers, drawn at random, is delayed so that
            a share drawn from this range overlaps
            (see ``partial``); then the result is cropped.
        noise_activity: [least, most]; what of the mixture is no speech is kept in one window, of a
            share of it drawn from this range.

    Raises:
        ValueError: an argument out of range.
        UserError: a table that is missing, malformed, or has fewer than ``num_spk`` speakers.
    """

    def __init__(
        self,
        train: bool,
        sample_rate: int = 8000,
        segment_s: float | None = None,
        num_spk: int = 2,
        speed_perturb_factors: Sequence[float] | None = None,
        dynamic_mixing: bool = False,
        source_scp: str | None = None,
        source2spk: str | None = None,
        gain_db: float = 2.5,
        overlap_ratio: Sequence[float] | None = None,
        noise_activity: Sequence[float] | None = None,
    ) -> None:
        super().__init__(train)
        if segment_s is not None and segment_s <= 0:
            raise ValueError(f"segment_s must be positive or None, got {segment_s}")
        if gain_db < 0:
            raise ValueError(f"gain_db must be at least 0, got {gain_db}")
        factors = list(speed_perturb_factors or [])
        if any(not 0.5 <= factor <= 2.0 for factor in factors):
            raise ValueError(f"speed_perturb_factors must lie in 0.5..2.0, got {factors}")
        for name, bounds in (("overlap_ratio", overlap_ratio), ("noise_activity", noise_activity)):
            if bounds is None:
                continue
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
                raise ValueError(f"{name} must be 0 <= least <= most <= 1, got {list(bounds)}")
        if overlap_ratio is not None and num_spk != 2:
            raise ValueError(f"overlap_ratio needs num_spk 2, got {num_spk}")
        self.overlap_ratio = None if overlap_ratio is None else tuple(overlap_ratio)
        self.noise_activity = None if noise_activity is None else tuple(noise_activity)
        self.sample_rate = sample_rate
        self.segment = None if segment_s is None else round(segment_s * sample_rate)
        self.num_spk = num_spk
        self.speeds = [Fraction(factor).limit_denominator(100) for factor in factors]
        self.dynamic_mixing = dynamic_mixing and train
        self.gain_db = gain_db
        if self.dynamic_mixing:
            if source_scp is None or source2spk is None:
                raise ValueError("dynamic_mixing needs source_scp and source2spk")
            self._load_sources(source_scp, source2spk)

    def __call__(self, uid: str, data: dict) -> dict:
        """``data``: name -> (samples,) array. Changed only in training."""
        if not self.train or "speech_ref1" not in data:
            return data
        rng = np.random.default_rng([np.random.randint(2**31), zlib.crc32(uid.encode())])
        data = self._mix_sources(data, rng) if self.dynamic_mixing else self._perturb(data, rng)
        return self._crop(self._thin_out(data, rng), rng)

    # -- mixtures as they are on disk ----------------------------------------------------------

    def _signal_names(self, data: dict) -> list[str]:
        names = ["speech_mix", *(f"speech_ref{n + 1}" for n in range(self.num_spk)), "noise_ref1"]
        return [name for name in names if name in data]

    def _perturb(self, data: dict, rng: np.random.Generator) -> dict:
        speed = self._draw_speed(rng)
        return {**data, **{n: change_speed(data[n], speed) for n in self._signal_names(data)}}

    def _crop(self, data: dict, rng: np.random.Generator) -> dict:
        length = len(data["speech_mix"])
        if self.segment is None or length <= self.segment:
            return data
        if self.overlap_ratio is None:
            start = int(rng.integers(0, length - self.segment + 1))
        else:  # a speaker may be silent for long
            references = [data["speech_ref1"], data["speech_ref2"]]
            start = start_with_speech(references, self.segment, self.sample_rate, rng)
        window = slice(start, start + self.segment)
        return {**data, **{name: data[name][window] for name in self._signal_names(data)}}

    def _thin_out(self, data: dict, rng: np.random.Generator) -> dict:
        """Less overlap, less noise; the mixture is made anew."""
        if self.overlap_ratio is None and self.noise_activity is None:
            return data
        names = [f"speech_ref{n + 1}" for n in range(self.num_spk)]
        changed = {name: data[name] for name in names}
        noise = data["speech_mix"] - np.sum(list(changed.values()), 0)
        if self.overlap_ratio is not None:
            leading, following = rng.permutation(names)
            ratio = rng.uniform(self.overlap_ratio[0], self.overlap_ratio[1])
            changed[leading], changed[following] = delayed_to_overlap(
                data[leading], data[following], self.sample_rate, ratio
            )
        speech = np.sum(list(changed.values()), 0)
        noise = np.resize(noise, len(speech))
        if self.noise_activity is not None:
            share = rng.uniform(self.noise_activity[0], self.noise_activity[1])
            noise = windowed_noise(noise, share, rng)
        if "noise_ref1" in data:
            changed["noise_ref1"] = noise
        return {**data, **changed, "speech_mix": speech + noise}

    # -- dynamic mixing ------------------------------------------------------------------------

    def _load_sources(self, source_scp: str, source2spk: str) -> None:
        paths, speaker_of = read_scp(source_scp), read_scp(source2spk)
        self.paths_by_speaker: dict[str, list[str]] = {}
        for source, path in paths.items():
            if source not in speaker_of:
                raise UserError(
                    f"{source2spk}: no line for {source!r} of {source_scp}; run stage 1 again"
                )
            self.paths_by_speaker.setdefault(speaker_of[source], []).append(path)
        self.speakers = sorted(self.paths_by_speaker)
        if len(self.speakers) < self.num_spk:
            raise UserError(
                f"{source_scp}: dynamic mixing of {self.num_spk} speakers needs as many speakers, "
                f"found {len(self.speakers)}"
            )

    def _draw_speed(self, rng: np.random.Generator) -> Fraction:
        return self.speeds[rng.integers(len(self.speeds))] if self.speeds else Fraction(1)

    def _read_source(self, path: str, rng: np.random.Generator) -> np.ndarray:
        """A random part of a file, speed-perturbed, at most one segment long, at unit RMS."""
        speed = self._draw_speed(rng)
        frames = soundfile.info(path).frames
        wanted = frames if self.segment is None else min(frames, round(self.segment * speed) + 1)
        start = rng.integers(0, frames - wanted + 1)
        signal, rate = soundfile.read(path, start=start, frames=wanted, dtype="float32")
        if rate != self.sample_rate:
            raise UserError(
                f"{path}: expected {self.sample_rate} Hz, found {rate} Hz; run stage 2 again"
            )
        signal = change_speed(signal, speed)[: self.segment]
        rms = np.sqrt(np.mean(np.square(signal), dtype=np.float64))
        return signal / max(float(rms), 1e-8)

    def _mix_sources(self, data: dict, rng: np.random.Generator) -> dict:
        chosen = rng.choice(len(self.speakers), self.num_spk, replace=False)
        pools = [self.paths_by_speaker[self.speakers[index]] for index in chosen]
        parts = [self._read_source(pool[rng.integers(len(pool))], rng) for pool in pools]
        length = max(map(len, parts))
        references = np.zeros((self.num_spk, length), dtype=np.float32)
        for reference, part in zip(references, parts, strict=True):
            # the shorter utterance starts anywhere within the longer one
            start = rng.integers(0, length - len(part) + 1)
            gain = 10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20)
            reference[start : start + len(part)] = gain * part
        mixture = references.sum(0)
        changed = {}
        if "noise_ref1" in data:
            changed["noise_ref1"] = self._fit_noise(data, mixture)
            mixture = mixture + changed["noise_ref1"]
        scale = _PEAK / max(float(np.abs(mixture).max()), float(np.abs(references).max()), 1e-8)
        changed = {name: signal * scale for name, signal in changed.items()}
        changed["speech_mix"] = mixture * scale
        for index, reference in enumerate(references):
            changed[f"speech_ref{index + 1}"] = reference * scale
        return {**data, **changed}

    def _fit_noise(self, data: dict, mixture: np.ndarray) -> np.ndarray:
        """The noise on disk, repeated or cut to the new mixture, at its old SNR."""
        noise = data["noise_ref1"]
        speech = data["speech_mix"] - noise
        ratio = np.sqrt(np.mean(noise**2) / max(np.mean(speech**2), 1e-12))
        noise = np.resize(noise, len(mixture))
        level = np.sqrt(np.mean(mixture**2) / max(np.mean(noise**2), 1e-12))
        return (noise * ratio * level).astype(np.float32)


def change_speed(signal: np.ndarray, speed: Fraction) -> np.ndarray:
    """Play ``signal`` (samples,) ``speed`` times as fast: tempo and pitch change together."""
    if speed == 1:
        return signal
    return resample_poly(signal, speed.denominator, speed.numerator).astype(signal.dtype)
