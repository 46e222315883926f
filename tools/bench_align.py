#!/usr/bin/env python3
"""How often speakers swap streams between chunks: our aligner against plain overlap correlation.

    tools/bench_align.py --model egs2/mini/tf_moe/exp/tf_moe_mini_8k

Conversations of two generated voices (test speakers of `mini`), 2 minutes each, pauses of up to
10 s, overlap of turns up to 40 %. Both ways get the same model, chunk and overlap; `plain` puts
chunks on a regular grid and orders them by the correlation of waveforms in the overlap, `espnet`
by SI-SNR there.

Whose voice is in which stream follows from the correlation with the references: on both sides of a
joint in the overlap or, where that is silent, in the last two seconds of speech before and the
first two after. If the speakers change streams there, that is a swap. A model that changes its mind
within a chunk, between its first and its last two seconds of speech, is counted apart: no order of
chunks mends that. Writes bench/align.json for tools/update_readme.py; conversations that are in it,
of the same model and chunks, are not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from update_readme import ALIGNMENTS, align_table

from espnet2_sepx.data.conversation import conversation
from espnet2_sepx.data.synth import draw_speakers, draw_utterance, synthesize
from espnet2_sepx.errors import run_cli
from espnet2_sepx.files import atomic_write
from espnet2_sepx.infer.align import Aligner, Joint, best_order
from espnet2_sepx.infer.chunks import Chunker
from espnet2_sepx.infer.separator import ChunkEngine, Options, Separator

RESULT = Path(__file__).resolve().parent.parent / "bench" / "align.json"
SECONDS, UTTERANCES = 120.0, 12
LEVEL = 0.05


class PlainAligner(Aligner):
    """Correlation in the overlap and nothing else."""

    def __init__(self, streams: int, fs: int, by: str) -> None:
        super().__init__(streams, fs)
        self._by = by

    def learn(self, streams: np.ndarray, confidence: float = 1.0) -> None:
        """There is nothing to learn."""

    def join(self, past: np.ndarray, chunk: np.ndarray, start: int) -> Joint:
        past, new = past[:, 0], chunk[:, 0, : past.shape[2]]
        norms = np.linalg.norm(past, axis=1)[:, None] * np.linalg.norm(new, axis=1) + 1e-12
        score = (past @ new.T).astype(float) / norms
        if self._by == "espnet":
            score = 10 * np.log10((score**2 + 1e-8) / (1 - np.minimum(score**2, 1 - 1e-8)))
        order, odds = best_order(score)
        shared = past.shape[1] / self._fs
        return Joint(start / self._fs, shared, order, "overlap", 0.5 if odds == 0 else 1.0)


class Heard(NamedTuple):
    """A chunk: where it starts, and per sample how much its streams lie as the references do."""

    start: int
    evidence: np.ndarray


class Listener:
    """Compares every chunk that the separator returns with the references."""

    def __init__(self, separator: Separator, references: np.ndarray) -> None:
        self.chunks: list[Heard] = []
        self._separator, self._references = separator, references
        self._mixture = references.sum(0)
        self._fs = separator.fs
        power = np.convolve(np.square(references).sum(0), np.ones(self._fs // 10), "same")
        self._is_speech = power > 1e-3 * LEVEL**2 * (self._fs // 10)

    def __getattr__(self, name: str) -> object:
        return getattr(self._separator, name)

    def forward(self, mixture: np.ndarray) -> np.ndarray:
        streams = self._separator.forward(mixture)
        start = self._find(mixture[:, 0])
        part = self._references[:, start : start + len(mixture)]
        centred = streams[:, 0] - streams[:, 0].mean(0)  # two streams: one is minus the other
        self.chunks.append(Heard(start, (part[0] - part[1]) * (centred[0] - centred[1])))
        return streams

    def side(self, chunk: Heard, begin: int, end: int, count: int) -> int:
        """1 if the streams of a chunk lie as the references from ``begin`` to ``end``, else -1.

        Of speech the first ``count`` samples are used, or, if negative, the last; 0 without speech.
        """
        where = chunk.start + np.arange(begin - chunk.start, end - chunk.start)
        speech = where[self._is_speech[where]] - chunk.start
        used = speech[:count] if count > 0 else speech[count:]
        return int(np.sign(chunk.evidence[used].sum()))

    def sides(self, past: Heard, new: Heard) -> tuple[int, int]:
        """Of two chunks where they are joined."""
        end, plenty = past.start + len(past.evidence), 2 * self._fs
        if np.count_nonzero(self._is_speech[new.start : end]) > self._fs // 4:
            return self.side(past, new.start, end, end), self.side(new, new.start, end, end)
        after = new.start + len(new.evidence)
        return self.side(past, past.start, end, -plenty), self.side(new, new.start, after, plenty)

    def changes_its_mind(self, chunk: Heard) -> bool:
        end, plenty = chunk.start + len(chunk.evidence), 2 * self._fs
        both = (self.side(chunk, chunk.start, end, count) for count in (plenty, -plenty))
        return next(both) * next(both) < 0

    def _find(self, chunk: np.ndarray) -> int:
        """Where a chunk comes from: the one place where the mixture begins like it."""
        probe = int(np.argmax(np.abs(chunk)))
        places = np.flatnonzero(self._mixture == chunk[probe]) - probe
        for place in places[places >= 0]:
            if np.array_equal(self._mixture[place : place + len(chunk)], chunk):
                return int(place)
        raise AssertionError("a chunk is a part of the mixture")


def make_conversation(seed: int, fs: int) -> np.ndarray:
    """References ``(2, N)``."""
    rng = np.random.default_rng(seed)
    people = []
    for speaker in draw_speakers("test", 2 + 2 * (seed % 5), seed)[-2:]:
        turns = [synthesize(draw_utterance(speaker, rng), fs) for _ in range(UTTERANCES)]
        people.append([(turn * (LEVEL / turn.std())).astype(np.float32) for turn in turns])
    return conversation(people, SECONDS, fs, rng)


def count_swaps(separator: Separator, references: np.ndarray, way: str) -> dict[str, float]:
    """Joints and swaps of one conversation."""
    listener = Listener(separator, references)
    chunker = aligner = None
    if way != "ours":
        chunker = Chunker(separator.chunk, separator.overlap, separator.overlap, separator.fs)
        aligner = PlainAligner(2, separator.fs, way)
    engine = ChunkEngine(listener, chunker, aligner)  # type: ignore[arg-type]
    mixture = references.sum(0)[:, None]
    for start in range(0, len(mixture), separator.fs):
        engine.push(mixture[start : start + separator.fs])
    engine.flush()
    signs = [1, *(1 if joint.order == (0, 1) else -1 for joint in engine.joints)]
    pairs = zip(itertools.pairwise(listener.chunks), itertools.pairwise(signs), strict=True)
    swaps = sum(np.prod((*listener.sides(*chunks), *orders)) < 0 for chunks, orders in pairs)
    within = sum(map(listener.changes_its_mind, listener.chunks))
    return {"joints": len(engine.joints), "swaps": int(swaps), "within_chunks": within}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="trained on `mini`")
    parser.add_argument("--conversations", type=int, default=20)
    parser.add_argument("--chunk_s", type=float, help="default: by model")
    parser.add_argument("--overlap_s", type=float, help="default: by model")
    args = parser.parse_args()
    separator = Separator(Options(args.model, chunk_s=args.chunk_s, overlap_s=args.overlap_s))
    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    about = {"model": Path(args.model).name, "conversation_s": SECONDS}
    runs = results.get("runs", {}) if about.items() <= results.items() else {}
    chunk_s, overlap_s = (n / separator.fs for n in (separator.chunk, separator.overlap))
    rows = runs.setdefault(f"chunks of {chunk_s:g} s sharing {overlap_s:g} s", {})
    for seed in range(args.conversations):
        if str(seed) in rows:
            continue
        references = make_conversation(seed, separator.fs)
        rows[str(seed)] = {way: count_swaps(separator, references, way) for way in ALIGNMENTS}
        print(seed, rows[str(seed)], flush=True)
        with atomic_write(RESULT) as stream:
            json.dump({**about, "runs": runs}, stream, indent=1)
            stream.write("\n")
    print(align_table())


if __name__ == "__main__":
    run_cli(main)
