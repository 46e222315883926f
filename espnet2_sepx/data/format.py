"""Stage 2 of a recipe: every signal at the rate and in the container that training expects.

All samples are read once here, so that nothing later meets NaN, silence, stereo or a mixture and a
reference of different lengths. Files that are right already are referred to, not copied. The
mixture, its references and its noise are resampled by the same linear filter and, where that would
overshoot full scale, scaled by a common gain: a mixture that was the sum of its parts stays it,
up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from espnet2_sepx.data.directory import (
    DataDirectory,
    find_problems,
    read_data_directory,
    unequal_lengths,
)
from espnet2_sepx.data.kaldi import spk2utt_from_utt2spk, write_scp
from espnet2_sepx.data.recordings import check_header
from espnet2_sepx.errors import UserError
from espnet2_sepx.files import atomic_dir
from espnet2_sepx.parallel import map_in_processes

AUDIO_FORMATS = ("wav", "flac")

_CONTAINERS = {"wav": ("WAV", "WAVEX"), "flac": ("FLAC",)}
_SILENT_PEAK = 1e-4  # -80 dB of full scale
_LARGEST = 1.0 - 2.0**-15  # in 16 bits; the smallest is -1
_WORTH_A_PROCESS = 300  # starting one takes as long as reading about that many utterances


@dataclass(frozen=True)
class Target:
    """What signals are to become; lengths in seconds, ``max_s`` 0 for no limit."""

    fs: int
    audio_format: str
    min_s: float = 0.0
    max_s: float = 0.0


@dataclass(frozen=True)
class Group:
    """Signals of one utterance, or a single source, that must be treated alike.

    Attributes:
        key: utterance or source id.
        paths: files by name of their table, the mixture first.
        target: what they are to become.
        folder: where new files are written, below it one folder per table.
        final_folder: where they will be found in the end.
        limited: is the length filter for this group?
    """

    key: str
    paths: dict[str, str]
    target: Target
    folder: Path
    final_folder: Path
    limited: bool


@dataclass(frozen=True)
class Formatted:
    """Result for a group; ``paths`` is empty if it was too short or too long."""

    key: str
    paths: dict[str, str]
    samples: int


def format_data_directory(
    source: str | Path, out: str | Path, target: Target, nj: int = 1
) -> tuple[int, int]:
    """Write the formatted data directory ``out``, which appears when all of it is right.

    Returns:
        Number of utterances taken over, and of those left out for their length.

    Raises:
        UserError: a fault in a table or a signal, or no utterance of allowed length.
    """
    out = Path(out).absolute()
    data = read_data_directory(source)
    for problem in find_problems(data):
        raise UserError(problem)
    if data.path.resolve() == out.resolve():
        raise UserError(f"{out}: is the input as well; write to another folder")
    utterances = data.signals["wav.scp"]
    with atomic_dir(out) as folder:
        groups = [
            Group(
                key,
                {name: table[key] for name, table in data.signals.items()},
                target,
                folder,
                out,
                limited=True,
            )
            for key in utterances
        ] + [
            Group(key, {"source.scp": path}, target, folder, out, limited=False)
            for key, path in data.sources.items()
        ]
        results = map_in_processes(
            format_group,
            groups,
            min(nj, 1 + len(groups) // _WORTH_A_PROCESS),
            description=f"formatting {data.path.name}",
            unit="file",
        )
        formatted = list(results)
        kept = [result for result in formatted[: len(utterances)] if result.paths]
        if not kept:
            raise UserError(
                f"{data.path}: no utterance is {_describe_limits(target)}; relax --min_s, --max_s"
            )
        _write_tables(folder, data, kept, formatted[len(utterances) :])
    return len(kept), len(utterances) - len(kept)


def format_group(group: Group) -> Formatted:
    """Check and, where needed, convert the signals of one utterance."""
    infos, signals = _read_group(group)
    target = group.target
    resampled = {
        name: _resample(signal, infos[name].samplerate, target.fs)
        for name, signal in signals.items()
    }
    samples = len(next(iter(resampled.values())))
    seconds = samples / target.fs
    if group.limited and (seconds < target.min_s or (target.max_s > 0 and seconds > target.max_s)):
        return Formatted(group.key, {}, samples)

    subtypes = {name: _subtype(info, target.audio_format) for name, info in infos.items()}
    to_write = {name for name, info in infos.items() if not _is_right(info, target)}
    limited = [resampled[name] for name in to_write if subtypes[name] != "FLOAT"]
    gain = 1.0 / max([1.0, *(_excess(signal) for signal in limited)])
    if gain < 1.0:
        to_write = set(infos)
    paths = {}
    for name, path in group.paths.items():
        if name not in to_write:
            paths[name] = path
            continue
        relative = Path("audio", Path(name).stem, f"{group.key}.{target.audio_format}")
        destination = group.folder / relative
        destination.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(
            destination,
            _quantise(gain * resampled[name], subtypes[name]),
            target.fs,
            subtype=subtypes[name],
        )
        paths[name] = str(group.final_folder / relative)
    return Formatted(group.key, paths, samples)


def _read_group(group: Group) -> tuple[dict[str, soundfile._SoundFileInfo], dict[str, np.ndarray]]:
    """Headers and samples, ``(samples,)`` float64, of mono signals of one rate and length."""
    infos: dict[str, soundfile._SoundFileInfo] = {}
    signals: dict[str, np.ndarray] = {}
    first = next(iter(group.paths))
    for name, path in group.paths.items():
        check_header(Path(path), group.target.fs)
        infos[name] = soundfile.info(path)
        signals[name] = _read_signal(path, may_be_silent=name.startswith("noise"))
        if infos[name].samplerate != infos[first].samplerate:
            raise UserError(
                f"{path}: sampling rate is {infos[name].samplerate} Hz, but {group.paths[first]} "
                f"has {infos[first].samplerate} Hz; convert the signals of an utterance to one rate"
            )
        if len(signals[name]) != len(signals[first]):
            raise UserError(
                unequal_lengths(path, len(signals[name]), group.paths[first], len(signals[first]))
            )
    return infos, signals


def _read_signal(path: str, may_be_silent: bool) -> np.ndarray:
    try:
        signal, _ = soundfile.read(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path}: is damaged ({error}); restore the file") from error
    if not np.isfinite(signal).all():
        raise UserError(
            f"{path}: has NaN or infinite samples; repair the file, or remove its utterance from "
            "all tables"
        )
    if not may_be_silent and np.abs(signal).max(initial=0.0) < _SILENT_PEAK:
        raise UserError(
            f"{path}: is silent (nothing above -80 dB of full scale); remove its utterance from "
            "all tables"
        )
    return signal


def _resample(signal: np.ndarray, native: int, fs: int) -> np.ndarray:
    if native == fs:
        return signal
    from scipy.signal import resample_poly

    common = math.gcd(fs, native)
    return resample_poly(signal, fs // common, native // common)


def _excess(signal: np.ndarray) -> float:
    """By what factor a signal exceeds what 16 bits can hold; at most 1 if it does not."""
    return max(float(signal.max()) / _LARGEST, -float(signal.min()))


def _is_right(info: soundfile._SoundFileInfo, target: Target) -> bool:
    return info.samplerate == target.fs and info.format in _CONTAINERS[target.audio_format]


def _subtype(info: soundfile._SoundFileInfo, audio_format: str) -> str:
    """Resolution to write: that of the origin as far as the container has it."""
    subtype = {"DOUBLE": "FLOAT", "PCM_32": "FLOAT"}.get(info.subtype, info.subtype)
    if subtype == "FLOAT" and audio_format == "flac":
        return "PCM_24"
    return subtype if subtype in ("PCM_24", "FLOAT") else "PCM_16"


def _quantise(signal: np.ndarray, subtype: str) -> np.ndarray:
    """Round as reading undoes it: full scale is 2**15 or 2**23 (libsndfile writes 2**15 - 1)."""
    if subtype == "PCM_16":
        return np.rint(signal * 2.0**15).astype(np.int16)
    if subtype == "PCM_24":
        return np.rint(signal * 2.0**23).astype(np.int32) << 8
    return signal.astype(np.float32)


def _write_tables(
    folder: Path, data: DataDirectory, kept: list[Formatted], sources: list[Formatted]
) -> None:
    for name in data.signals:
        write_scp(folder / name, {result.key: result.paths[name] for result in kept})
    for name, table in data.tables.items():
        write_scp(folder / name, {result.key: table[result.key] for result in kept})
    utt2spk = {result.key: data.tables["utt2spk"][result.key] for result in kept}
    write_scp(folder / "spk2utt", spk2utt_from_utt2spk(utt2spk))
    write_scp(folder / "utt2num_samples", {result.key: result.samples for result in kept})
    if sources:
        write_scp(
            folder / "source.scp", {result.key: result.paths["source.scp"] for result in sources}
        )
        write_scp(folder / "source2spk", data.source2spk)


def _describe_limits(target: Target) -> str:
    upper = f" and at most {target.max_s:g} s" if target.max_s > 0 else ""
    return f"at least {target.min_s:g} s{upper} long"
