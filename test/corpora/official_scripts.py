"""The arithmetic of the published generators, stated plainly: what ours is compared with.

Libri2Mix by its ``create_librimix_from_metadata.py``, wsj0-2mix by the Python port of MERL's
scripts, WHAM! by ``create_wham_from_scratch.py``; each mixture read whole, one rate and one length
at a time, written by libsndfile where the original is.
"""

from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly


def libri2mix(speech: Path, noise_root: Path, row: dict, fs: int, mode: str) -> dict:
    """Signals by kind as floats; write with ``soundfile.write``'s default."""
    sources = [soundfile.read(speech / row[f"source_{n}_path"], dtype="float32")[0] for n in (1, 2)]
    longest = max(map(len, sources))
    noise = soundfile.read(noise_root / row["noise_path"], dtype="float32", stop=longest)[0][:, 0]
    if len(noise) < longest:
        once, half = noise, 8001
        window = np.hanning(16001)
        while len(noise) < longest:
            cross = noise[-half:] * window[:half][::-1] + once[:half] * window[:half]
            noise = np.concatenate([noise[:-half], cross, once[half:]])
        noise = noise[:longest]
    gains = [float(row[f"{what}_gain"]) for what in ("source_1", "source_2", "noise")]
    signals = [x * gain for x, gain in zip([*sources, noise], gains, strict=True)]
    signals = [resample_poly(x, fs, 16000) for x in signals]
    lengths = [len(x) for x in signals]
    if mode == "min":
        signals = [x[: min(lengths)] for x in signals]
    else:
        signals = [np.pad(x, (0, max(lengths) - len(x))) for x in signals]
    s1, s2, noise = signals

    def total(*parts: np.ndarray) -> np.ndarray:
        mixture = np.zeros_like(parts[0])
        for part in parts:
            mixture += part
        return mixture

    mixtures = {
        "mix_clean": total(s1, s2),
        "mix_both": total(s1, s2, noise),
        "mix_single": total(s1, noise),
    }
    return {"s1": s1, "s2": s2, "noise": noise, **mixtures}


def wsj0_2mix(paths: list[Path], powers: list[float], levels: list[float], fs: int, mode: str):
    """16-bit samples by kind."""
    signals = [resample_poly(soundfile.read(p, dtype="float32")[0], fs, 16000) for p in paths]
    longest, shortest = max(map(len, signals)), min(map(len, signals))
    scaled = []
    for signal, power, level in zip(signals, powers, levels, strict=True):
        padded = np.hstack((signal, np.zeros(longest - len(signal))))
        scaled.append(padded / np.sqrt(power) * 10 ** (level / 20))
    sources = np.stack(scaled)
    mixture = sources.sum(axis=0)
    if mode == "min":
        sources, mixture = sources[:, :shortest], mixture[:shortest]
    gain = max(1.0, np.abs(mixture).max(), np.abs(sources).max()) / 0.9
    quantised = [np.int16(np.round(2**15 * (x / gain))) for x in (mixture, *sources)]
    return dict(zip(("mix", "s1", "s2"), quantised, strict=True))


def wham(paths: list[Path], noise: Path, table: dict, index: int, fs: int, mode: str) -> dict:
    """Float signals by kind, from utterances of WSJ0."""
    key = f"{fs // 1000}k_{mode}"
    signals = []
    for path, gain in zip(paths, table[f"scaling_wsjmix_{key}"][index], strict=True):
        signal = soundfile.read(path)[0]
        signal = (resample_poly(signal, 1, 2) if fs == 8000 else signal) * gain
        quantised = np.int16(np.round(2**15 * signal)) / 2**15
        signals.append(quantised * table[f"scaling_wham_speech_{key}"][index])
    clip = soundfile.read(noise)[0][:, 0]
    clip = resample_poly(clip, 1, 2) if fs == 8000 else clip
    clip = clip * table[f"scaling_wham_noise_{key}"][index]
    start = int(table["speech_start_sample_16k"][index])
    start = start // 2 if fs == 8000 else start
    if mode == "min":
        length = min(map(len, signals))
        signals, clip = [x[:length] for x in signals], clip[start : start + length]
    else:
        length = len(clip)
        signals = [np.pad(x, (start, length - start - len(x))) for x in signals]
    s1, s2 = signals
    mixtures = {"mix_clean": s1 + s2, "mix_single": clip + s1, "mix_both": clip + s1 + s2}
    return {"s1": s1, "s2": s2, "noise": clip, **mixtures}
