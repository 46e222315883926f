"""Dry sources: clean speech of one speaker at the rate and level of the corpus.

Silence at the ends is trimmed, long recordings are cut into equal pieces, and the level is set to
-26 dB (active level), whatever it was in the origin. Everything after this step sees 16-bit mono
files that are alike, from wherever the speech came.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from espnet2_sepx.data.loudness import active_level_db, db_to_gain
from espnet2_sepx.data.metadata import DrySource, RecordedSource, SpokenSource
from espnet2_sepx.data.overlap import active_span, activity, block_length
from espnet2_sepx.data.recordings import read_recording
from espnet2_sepx.data.synth import draw_speakers, draw_utterance, synthesize
from espnet2_sepx.errors import UserError

PEAK = 0.9  # of full scale, in no file exceeded, as in wsj0-2mix
_LEVEL_DB = -26.0
_MARGIN_S = 0.1  # kept before and after the active part
_SHORTEST_SPEECH_S = 0.5  # of activity, below which a piece is left out


def spoken_origins(subset: str, speakers: int, utterances: int, seed: int) -> list[SpokenSource]:
    """What generated speakers of a set say; where to cut is not known yet (see ``cut``)."""
    origins = []
    for number, speaker in enumerate(draw_speakers(subset, speakers, seed)):
        rng = np.random.default_rng([seed, number, *subset.encode()])
        for index in range(utterances):
            name = f"{speaker.name}_{index:03d}"
            utterance = draw_utterance(speaker, rng)
            origins.append(SpokenSource(name, speaker.name, 0, 0, 1.0, utterance))
    return origins


def recorded_origins(speakers: dict[str, list[Path]], folder: Path) -> list[RecordedSource]:
    """The recordings of a set under names without blanks; where to cut is not known yet.

    Raises:
        UserError: two speakers or recordings whose names differ only in unusable characters.
    """
    origins: dict[str, RecordedSource] = {}
    folder_of: dict[str, str] = {}
    for speaker, files in speakers.items():
        label = _label(speaker)
        if folder_of.setdefault(label, speaker) != speaker:
            raise UserError(
                f"{folder}: speakers {folder_of[label]!r} and {speaker!r} would both be called "
                f"{label!r}; rename one of the folders"
            )
        for path in files:
            stem = _label(path.stem)
            name = f"{label}_{stem}"
            count = 2
            while name in origins:
                name = f"{label}_{stem}-{count}"
                count += 1
            file = path.relative_to(folder).as_posix()
            origins[name] = RecordedSource(name, label, 0, 0, 1.0, file)
    return list(origins.values())


def _label(name: str) -> str:
    return re.sub(r"[^\w.+-]", "-", name)


def load_origin(origin: DrySource, speech_dir: Path | None, fs: int) -> np.ndarray:
    """The whole signal that a source is cut from, ``(samples,)`` at ``fs`` Hz."""
    if isinstance(origin, SpokenSource):
        return synthesize(origin.utterance, fs)
    assert isinstance(origin, RecordedSource)
    assert speech_dir is not None
    return read_recording(speech_dir / origin.file, fs)


def cut(origin: DrySource, signal: np.ndarray, fs: int, max_seconds: float) -> list[DrySource]:
    """Trim an origin, and cut it into equal pieces no longer than ``max_seconds``.

    Pieces with less than half a second of speech are left out; the list may be empty.
    """
    first, last = active_span(signal, fs)
    margin = round(_MARGIN_S * fs)
    begin, end = max(0, first - margin), min(len(signal), last + margin)
    pieces = max(1, math.ceil((end - begin) / (max_seconds * fs)))
    edges = np.linspace(begin, end, pieces + 1).astype(int)
    sources = []
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        piece = signal[start:stop]
        speech_s = np.count_nonzero(activity(piece, fs)) * block_length(fs) / fs
        if speech_s < _SHORTEST_SPEECH_S:
            continue
        gain = db_to_gain(_LEVEL_DB - active_level_db(piece, fs))
        sources.append(
            dataclasses.replace(
                origin,
                source=origin.source if pieces == 1 else f"{origin.source}.{number:03d}",
                start=int(start),
                samples=len(piece),
                gain=min(gain, PEAK / float(np.abs(piece).max())),
            )
        )
    return sources


def render_source(source: DrySource, signal: np.ndarray) -> np.ndarray:
    """The 16-bit samples of a dry source, given the signal of its origin."""
    piece = signal[source.start : source.start + source.samples]
    if len(piece) != source.samples:
        raise UserError(
            f"source {source.source}: its origin has {len(signal)} samples, the table needs "
            f"{source.start + source.samples}; use the recordings and the versions it was made with"
        )
    return to_int16(source.gain * piece)


def to_int16(signal: np.ndarray) -> np.ndarray:
    """Round to 16 bits; the caller keeps the signal below full scale."""
    return np.rint(signal * 32768.0).astype(np.int16)


def draw_pairs(
    sources: Sequence[DrySource], count: int, rng: np.random.Generator
) -> list[tuple[DrySource, DrySource]]:
    """Up to ``count`` different pairs of sources of two speakers, each source about equally often.

    Pairs are made in rounds, in which every source is used once, if a new partner is left for it.
    """
    per_speaker = Counter(source.speaker for source in sources)
    possible = (len(sources) ** 2 - sum(n**2 for n in per_speaker.values())) // 2
    pairs: list[tuple[DrySource, DrySource]] = []
    used: set[frozenset[str]] = set()
    waiting: list[int] = []
    while len(pairs) < min(count, possible):
        if not waiting:
            waiting = rng.permutation(len(sources)).tolist()
        first = sources[waiting.pop()]
        for position in reversed(range(len(waiting))):
            second = sources[waiting[position]]
            names = frozenset((first.source, second.source))
            if second.speaker != first.speaker and names not in used:
                used.add(names)
                pairs.append((first, second))
                del waiting[position]
                break
    return pairs
