#!/usr/bin/env python3
"""How often speakers swap streams between chunks: our aligner against plain overlap correlation.

    tools/bench_align.py --model egs2/mini/tf_moe/exp/tf_moe_mini_8k

Conversations of two generated voices (test speakers of `mini`), 2 minutes each, pauses of up to
10 s, overlap of turns up to 40 %. Both ways get the same model, chunk and overlap; `plain` puts
chunks on a regular grid and orders them by the correlation of waveforms in the overlap, `espnet`
by SI-SNR there. A chunk's true order is the one that correlates best with the references; a joint
at which the order of the joined streams changes is a swap. Chunks with less than half a second of
speech have no true order. Writes bench/align.json for tools/update_readme.py; conversations that
are in it, of the same model and chunks, are not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_sepx.data.conversation import conversation
from espnet2_sepx.data.synth import draw_speakers, draw_utterance, synthesize
from espnet2_sepx.errors import run_cli
from espnet2_sepx.files import atomic_write
from espnet2_sepx.infer.align import Aligner, Joint, best_order
from espnet2_sepx.infer.chunks import Chunker
from espnet2_sepx.infer.separator import ChunkEngine, Options, Separator

RESULT = Path(__file__).resolve().parent.parent / "bench" / "align.json"
WAYS = {
    "plain": "correlation of waveforms in the overlap",
    "espnet": "SI-SNR in the overlap",
    "ours": "ours",
}
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


class Listener:
    """Records the true order of every chunk that the separator returns."""

    def __init__(self, separator: Separator, references: np.ndarray) -> None:
        self.orders: list[tuple[int, ...] | None] = []
        self._separator, self._references = separator, references
        self._mixture = references.sum(0)
        self._fs = separator.fs

    def __getattr__(self, name: str) -> object:
        return getattr(self._separator, name)

    def forward(self, mixture: np.ndarray) -> np.ndarray:
        streams = self._separator.forward(mixture)
        start = self._find(mixture[:, 0])
        part = self._references[:, start : start + len(mixture)]
        power = np.square(part.sum(0)).reshape(-1)
        speech_s = np.count_nonzero(power > 1e-4 * LEVEL**2) / self._fs
        centred = streams[:, 0] - streams[:, 0].mean(0)
        order, _ = best_order((part @ centred.T).astype(float))
        self.orders.append(order if speech_s > 0.5 else None)
        return streams

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
    orders = [(0, 1), *(joint.order for joint in engine.joints)]
    joined = [
        tuple(true.index(i) for i in order) if true is not None else None
        for order, true in zip(orders, listener.orders, strict=True)
    ]
    known = [order for order in joined if order is not None]
    doubtful = sum(joint.is_doubtful for joint in engine.joints)
    swaps = sum(one != two for one, two in itertools.pairwise(known))
    return {"joints": len(engine.joints), "swaps": swaps, "doubtful": doubtful}


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
    setting = {
        "model": Path(args.model).name,
        "chunk_s": separator.chunk / separator.fs,
        "overlap_s": separator.overlap / separator.fs,
        "conversation_s": SECONDS,
    }
    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows = results.get("conversations", {}) if setting.items() <= results.items() else {}
    for seed in range(args.conversations):
        if str(seed) in rows:
            continue
        references = make_conversation(seed, separator.fs)
        rows[str(seed)] = {way: count_swaps(separator, references, way) for way in WAYS}
        print(seed, rows[str(seed)], flush=True)
        with atomic_write(RESULT) as stream:
            json.dump({**setting, "conversations": rows}, stream, indent=1)
            stream.write("\n")
    print(table())


def table() -> str:
    """Markdown of bench/align.json."""
    results = json.loads(RESULT.read_text())
    rows = results["conversations"].values()
    lines = ["| voices matched by | joints | swaps | swaps per joint |", "|---|---|---|---|"]
    for way, name in WAYS.items():
        joints, swaps = (sum(row[way][key] for row in rows) for key in ("joints", "swaps"))
        lines.append(f"| {name} | {joints} | {swaps} | {swaps / joints:.3f} |")
    lines += [
        "",
        f"{len(rows)} conversations of {results['conversation_s']:g} s, `{results['model']}`, "
        f"chunks of {results['chunk_s']:g} s that share {results['overlap_s']:g} s or more.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
