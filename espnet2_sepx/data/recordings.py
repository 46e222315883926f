"""The user's own audio: finding it, sharing it out over the sets, reading it with clear errors.

Layouts accepted for speech (any depth below the speaker's folder):

    DIR/<speaker>/.../*                         speakers are shared out over train, valid and test
    DIR/{train,dev|valid,test}/<speaker>/.../*  the folders say who belongs where

For noise and room impulse responses: ``DIR/.../*`` or ``DIR/{train,dev|valid,test}/.../*``.
Anything libsndfile reads will do, mono, at the rate of the corpus or above.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
from scipy.signal import resample_poly

from espnet2_sepx.errors import UserError

SETS = ("train", "valid", "test")
_SET_FOLDERS = {"train": ("train", "tr"), "valid": ("dev", "valid", "cv"), "test": ("test", "tt")}
# Companions of audio in speech corpora; whatever else has an extension must be readable audio.
_NOT_AUDIO = re.compile(
    r"\.(bat|cfg|conf|csv|ctm|docx?|eaf|gif|html?|jpe?g|jsonl?|lab|log|md|pdf|phn|png|ps|py|rst|"
    r"rttm|scp|sh|srt|stm|textgrid|toml|trn|trs|tsv|txt|vtt|wrd|xlsx?|xml|ya?ml)"
)
_SILENT_PEAK = 1e-4  # -80 dB of full scale

Item = TypeVar("Item")


def find_speech(folder: Path, seed: int) -> dict[str, dict[str, list[Path]]]:
    """Speakers and their files: ``{set: {speaker: [file, ...]}}``, each set with two speakers.

    Raises:
        UserError: no such folder, no audio, too few speakers, a speaker in two sets.
    """
    _require_folder(folder, "--speech_dir")
    split = _set_folders(folder, "--speech_dir")
    if split is None:
        speakers = _find_speakers(folder)
        if len(speakers) < 2 * len(SETS):
            raise UserError(
                f"{folder}: found {len(speakers)} speaker folder(s), and two in each of train, "
                f"valid and test are needed; give {2 * len(SETS)} or more folders DIR/<speaker>/"
            )
        shares = share_out(sorted(speakers), seed, at_least=2)
        return {name: {s: speakers[s] for s in share} for name, share in shares.items()}
    sets = {name: _find_speakers(path) for name, path in split.items()}
    for name, speakers in sets.items():
        if len(speakers) < 2:
            raise UserError(
                f"{split[name]}: found {len(speakers)} speaker folder(s), and a mixture needs two; "
                f"add folders {split[name].name}/<speaker>/ with audio"
            )
    for first, second in (("train", "valid"), ("train", "test"), ("valid", "test")):
        for speaker in sorted(set(sets[first]) & set(sets[second])):
            raise UserError(
                f"{split[second] / speaker}: speaker {speaker!r} is also in {first}, and sets must "
                f"not share speakers; move the folder, or rename it if it is another person"
            )
    return sets


def find_files(folder: Path, option: str, seed: int) -> dict[str, list[Path]]:
    """Files of noise or room responses per set, kept apart as far as there are enough.

    Responses of one room, named ``<room>_<position>``, stay in one set (``room_of``). With fewer
    than three rooms (or noises) all sets share them.

    Raises:
        UserError: no such folder, or no audio in it.
    """
    _require_folder(folder, option)
    split = _set_folders(folder, option)
    if split is not None:
        files = {name: _audio_below(path) for name, path in split.items()}
    else:
        everything = _audio_below(folder)
        rooms = sorted({room_of(path) for path in everything})
        if len(rooms) < len(SETS):
            shares: dict[str, list[str]] = dict.fromkeys(SETS, rooms)
        else:
            shares = share_out(rooms, seed, at_least=1)
        files = {
            name: [path for path in everything if room_of(path) in share]
            for name, share in shares.items()
        }
    for name, paths in files.items():
        if not paths:
            raise UserError(
                f"{(split or {}).get(name, folder)}: no audio file; put some there, or point "
                f"{option} elsewhere"
            )
    return files


def room_of(path: Path) -> str:
    """Folder and name up to the last underscore: ``hall/studio_mic2.wav`` -> ``hall/studio``."""
    return str(path.with_name(path.stem.rsplit("_", 1)[0]))


def share_out(items: Sequence[Item], seed: int, at_least: int) -> dict[str, list[Item]]:
    """A tenth each for valid and test, but ``at_least`` so many; the same for the same seed."""
    order = np.random.default_rng(seed).permutation(len(items))
    tenth = max(at_least, round(len(items) / 10))
    bounds = {
        "valid": order[:tenth],
        "test": order[tenth : 2 * tenth],
        "train": order[2 * tenth :],
    }
    return {name: [items[i] for i in sorted(bounds[name])] for name in SETS}


def check_header(path: Path, fs: int) -> None:
    """Refuse what the header already shows to be unusable: not audio, empty, stereo, low rate."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        reason = re.sub(r"^.*?: ", "", str(error)).rstrip(".")
        raise UserError(
            f"{path}: cannot be read as audio ({reason}); remove it, or convert it to WAV or FLAC"
        ) from error
    if info.frames == 0:
        raise UserError(f"{path}: has no samples; remove the file")
    if info.channels != 1:
        raise UserError(
            f"{path}: has {info.channels} channels, expected 1; convert it, "
            f"for example: ffmpeg -i IN -ac 1 OUT.wav"
        )
    if info.samplerate < fs:
        raise UserError(
            f"{path}: sampling rate is {info.samplerate} Hz, below the {fs} Hz of the corpus; "
            f"choose --fs {info.samplerate} or lower, or remove the file"
        )


def read_recording(path: Path, fs: int, longest_s: float | None = None) -> np.ndarray:
    """``-> (samples,)`` float64 at ``fs`` Hz, at most the first ``longest_s`` seconds.

    Raises:
        UserError: what ``check_header`` refuses, NaN or infinite samples, silence.
    """
    check_header(path, fs)
    try:
        with soundfile.SoundFile(str(path)) as stream:
            native = stream.samplerate
            signal = stream.read(-1 if longest_s is None else int(longest_s * native))
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(
            f"{path}: is damaged ({error}); remove it, or get it from its source again"
        ) from error
    if not np.isfinite(signal).all():
        raise UserError(f"{path}: has NaN or infinite samples; remove or repair the file")
    if np.abs(signal).max(initial=0.0) < _SILENT_PEAK:
        raise UserError(f"{path}: is silent (nothing above -80 dB of full scale); remove the file")
    common = math.gcd(fs, native)
    return resample_poly(signal, fs // common, native // common)


def _require_folder(folder: Path, option: str) -> None:
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder}: {found}; give an existing folder with {option}")


def _set_folders(folder: Path, option: str) -> dict[str, Path] | None:
    """The folders of the three sets, or None when there is none of them."""
    found = {
        name: folder / alias
        for name, aliases in _SET_FOLDERS.items()
        for alias in aliases
        if (folder / alias).is_dir()
    }
    if not found:
        return None
    for name in SETS:
        if name not in found:
            raise UserError(
                f"{folder}: has a folder for {', '.join(found)} but none for {name} "
                f"({' or '.join(_SET_FOLDERS[name])}); add it, or rename the others"
            )
    return found


def _find_speakers(folder: Path) -> dict[str, list[Path]]:
    speakers = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            files = _audio_below(path)
            if files:
                speakers[path.name] = files
    return speakers


def _audio_below(folder: Path) -> list[Path]:
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterable[Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            extension = os.path.splitext(name)[1].lower()
            if extension and not _NOT_AUDIO.fullmatch(extension) and not name.startswith("."):
                yield Path(parent) / name
