"""Finding the utterances of WSJ0, however it lies on disk.

As distributed (LDC93S6A) it is 15 disks, ``11-1.1/wsj0/si_tr_s/<spk>/<utt>.wv1``; it is also found
merged into one tree, as ``csr_1/``, in upper case, and converted to WAV or FLAC. So folders are
looked for by their names, and utterances by theirs, which are unique; the close-talking microphone
only (``.wv1``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from espnet2_sepx.errors import UserError

FOLDERS = ("si_tr_s", "si_dt_05", "si_et_05")
_SUFFIXES = (".wav", ".flac", ".wv1", ".sph")  # of one utterance the first of these is taken
_DEPTH = 4  # of the folders above, at most
LAYOUT = (
    "expected WSJ0 (LDC93S6A) as DIR/11-1.1/wsj0/si_tr_s/<spk>/<utt>.wv1 with si_dt_05 (disk "
    "11-6.1) and si_et_05 (11-14.1), or merged as DIR/wsj0/si_tr_s/..., upper or lower case, "
    ".wv1, .wav or .flac; https://catalog.ldc.upenn.edu/LDC93S6A"
)


def find_utterances(root: Path, folders: Iterable[str] = FOLDERS) -> dict[str, str]:
    """Path of every utterance, by its name in lower case.

    Raises:
        UserError: no such folder, or one of the parts of the corpus is not in it.
    """
    if not root.is_dir():
        raise UserError(f"{root}: is no folder; {LAYOUT}")
    found: dict[str, list[str]] = {name: [] for name in folders}
    _look_for(str(root), found, _DEPTH)
    missing = [name for name, places in found.items() if not places]
    if missing:
        there = ", ".join(sorted(os.listdir(root))[:8]) or "nothing"
        raise UserError(f"{root}: has no folder {missing[0]} (found: {there}); {LAYOUT}")
    utterances: dict[str, tuple[int, str]] = {}
    for places in found.values():
        before = len(utterances)
        for place in places:
            _index(place, utterances)
        if len(utterances) == before:
            raise UserError(f"{places[0]}: has no audio; {LAYOUT}")
    return {utterance: path for utterance, (_, path) in utterances.items()}


def _look_for(folder: str, found: dict[str, list[str]], depth: int) -> None:
    """Note the folders of the names wanted; what is in them is not looked at."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = entry.name.lower()
            if not entry.is_dir():
                continue
            if name in found:
                found[name].append(entry.path)
            elif depth > 1 and not name.startswith((".", "si_", "sd_", "sj_")):
                _look_for(entry.path, found, depth - 1)


def _index(folder: str, utterances: dict[str, tuple[int, str]]) -> None:
    for parent, _, names in os.walk(folder):
        for file in names:
            stem, suffix = os.path.splitext(file.lower())
            if suffix in _SUFFIXES and not stem.startswith("."):
                candidate = (_SUFFIXES.index(suffix), os.path.join(parent, file))
                utterances[stem] = min(candidate, utterances.get(stem, candidate))
