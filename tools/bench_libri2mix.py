#!/usr/bin/env python3
"""Generating Libri2Mix: ours against the official script, the same rows, the same processes.

    git clone https://github.com/JorisCos/LibriMix
    tools/bench_libri2mix.py --librimix LibriMix        # its script needs pandas

The rows are the first of the official tables, the speech and noise behind them stand-ins with the
lengths the tables give, from ``--speech`` (any folder of audio) or noise. Every round runs both,
one after the other, as commands from start to end; then all files are compared byte by byte.
Writes bench/libri2mix.json for tools/update_readme.py.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import filecmp
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile

from espnet2_sepx.errors import UserError, run_cli
from espnet2_sepx.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "libri2mix.json"
FS = 16000
_SET_CHILD_SUBREAPER = 36
PARTS = {"train-clean-100": "train-100", "dev-clean": "dev", "test-clean": "test"}
SETTINGS = (  # rate, length, kinds of mixture; the script fails on mix_clean alone
    ("8k", "min", ("mix_clean", "mix_both")),
    ("16k", "max", ("mix_clean", "mix_both", "mix_single")),
)


def read_rows(checkout: Path, counts: dict[str, int]) -> dict[str, list[dict[str, str]]]:
    """The first rows of each official table."""
    rows = {}
    for part, count in counts.items():
        table = checkout / "metadata/Libri2Mix" / f"libri2mix_{part}.csv"
        if not table.is_file():
            raise UserError(f"{table}: no such file; --librimix takes a checkout of LibriMix")
        with open(table, newline="") as stream:
            rows[part] = [row for row, _ in zip(csv.DictReader(stream), range(count), strict=False)]
    return rows


def build(
    folder: Path,
    checkout: Path,
    rows: dict[str, list[dict[str, str]]],
    voice: np.ndarray,
) -> None:
    """Tables, LibriSpeech and wham_noise below ``folder``."""
    rng = np.random.default_rng(0)
    lengths = {}
    for part in rows:
        with open(checkout / "metadata/LibriSpeech" / f"{part}.csv", newline="") as stream:
            lengths |= {row["origin_path"]: int(row["length"]) for row in csv.DictReader(stream)}
    (folder / "tables").mkdir(parents=True)
    for part, lines in rows.items():
        with open(folder / f"tables/libri2mix_{part}.csv", "w", newline="") as stream:
            writer = csv.DictWriter(stream, lines[0])
            writer.writeheader()
            writer.writerows(lines)
        for row in lines:
            speech = [row[f"source_{n}_path"] for n in (1, 2)]
            for path in speech:
                samples = lengths[path]
                start = int(rng.integers(len(voice)))
                write(folder / "speech" / path, np.resize(np.roll(voice, -start), samples))
            samples = int(rng.uniform(6, 16) * FS)
            noise = 0.02 * rng.standard_normal((samples, 2))
            write(folder / "noise" / row["noise_path"], noise)


def write(path: Path, signal: np.ndarray) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, signal, FS)


def material(folder: Path | None) -> np.ndarray:
    """A minute or so of speech, or of noise."""
    if folder is None:
        return 0.1 * np.random.default_rng(1).standard_normal(60 * FS)
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".flac", ".wav"))[:20]
    if not files:
        raise UserError(f"{folder}: has no .flac or .wav")
    return np.concatenate([soundfile.read(path)[0] for path in files])


def ours(
    folder: Path, out: Path, setting: tuple[str, str, tuple[str, ...]], processes: int
) -> list[str]:
    rate, mode, (mixture, *types) = setting
    command = ["libri2mix", "--out", out / "data", "--audio_dir", out, "--nj", processes]
    command += ["--fs", 1000 * int(rate[:-1]), "--min_or_max", mode, "--mixture", mixture]
    command += ["--librispeech_dir", folder / "speech", "--metadata_dir", folder / "tables"]
    command += ["--wham_noise_dir", folder / "noise", *(["--types", *types] if types else [])]
    return [str(word) for word in command]


def official(
    folder: Path, checkout: Path, out: Path, setting: tuple[str, str, tuple[str, ...]]
) -> list[str]:
    rate, mode, types = setting
    script = checkout / "scripts/create_librimix_from_metadata.py"
    command = [script, "--librispeech_dir", folder / "speech", "--wham_dir", folder / "noise"]
    command += ["--metadata_dir", folder / "tables", "--librimix_outdir", out, "--n_src", 2]
    return [str(word) for word in [*command, "--freqs", rate, "--modes", mode, "--types", *types]]


def run(command: list[str]) -> tuple[float, float]:
    """Seconds a command takes by the clock, and of processors by it and all it starts."""
    before, start = cpu_seconds(), time.monotonic()
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    clock = time.monotonic() - start
    if result.returncode:
        raise UserError(f"{' '.join(command)}\n{result.stderr[-2000:]}")
    with contextlib.suppress(ChildProcessError):  # what outlives the command comes to us
        while True:
            os.waitpid(-1, 0)
    return clock, cpu_seconds() - before


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def count_equal(ours_dir: Path, official_dir: Path) -> int:
    """Files of the official tree, all of which must be in ours, byte for byte."""
    names = [path.relative_to(official_dir) for path in official_dir.rglob("*.wav")]
    for name in names:
        if not filecmp.cmp(ours_dir / name, official_dir / name, shallow=False):
            raise UserError(f"{name}: differs from the official script's")
    return len(names)


def compare(
    work: Path, checkout: Path, setting: tuple[str, str, tuple[str, ...]], rounds: int, jobs: int
) -> dict[str, Any]:
    runs: dict[str, list[tuple[float, float]]] = {"ours": [], "official": []}
    for _ in range(rounds):
        for name in runs:
            shutil.rmtree(work / name, ignore_errors=True)
            (work / name).mkdir()
        runs["official"].append(run(official(work, checkout, work / "official", setting)))
        mine = ours(work, work / "ours", setting, jobs)
        runs["ours"].append(run(["-m", "espnet2_sepx.bin.make_corpus", *mine]))
    found: dict[str, Any] = {"rate": setting[0], "length": setting[1], "kinds": setting[2]}
    for index, clock in enumerate(("seconds", "cpu_seconds")):
        times = {name: [pair[index] for pair in pairs] for name, pairs in runs.items()}
        ratios = [o / t for o, t in zip(times["ours"], times["official"], strict=True)]
        found[clock] = {name: round(median(values), 2) for name, values in times.items()}
        found[clock]["ratio"] = round(median(ratios), 3)
    found["equal_files"] = count_equal(work / "ours/Libri2Mix", work / "official/Libri2Mix")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--librimix", type=Path, required=True, help="a checkout of LibriMix")
    parser.add_argument("--speech", type=Path, help="folder of speech at 16 kHz")
    parser.add_argument("--rows", type=int, default=200, help="mixtures (200)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nj", type=int, default=2, help="processors for both (2)")
    args = parser.parse_args()
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.nj])  # the script takes all
    voice = material(args.speech)
    results: dict[str, Any] = {"rows": args.rows, "processes": args.nj, "rounds": args.rounds}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tenth = args.rows // 10
        counts = dict(zip(PARTS, (args.rows - 2 * tenth, tenth, tenth), strict=True))
        build(work, args.librimix, read_rows(args.librimix, counts), voice)
        results["times"] = [
            compare(work, args.librimix, setting, args.rounds, args.nj) for setting in SETTINGS
        ]
    print(json.dumps(results))
    with atomic_write(RESULT) as stream:
        json.dump(results, stream, indent=1)
        stream.write("\n")


if __name__ == "__main__":
    run_cli(main)
