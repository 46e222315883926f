#!/usr/bin/env python3
"""Time and memory of RE-SepFormer over the length of the input, beside SpeechBrain's and SkiM.

    python tools/bench_re_sepformer.py                          # 1 to 64 s, one and two threads
    python tools/bench_re_sepformer.py --seconds 256 --rounds 3 --systems ours speechbrain
    python tools/bench_re_sepformer.py --parts streaming        # per-chunk real-time factors
    python tools/bench_re_sepformer.py --keep                   # also put tables into docs/SPEED.md

Encoder, separator and decoder, random weights, the same ones in ours and SpeechBrain's (through the
importer), noise at 8 kHz. Every system has a process of its own for each length; the processes take
turns, round after round. Memory is what the first run adds to the loaded model at its peak. With
one thread CPU time counts, so that other programs disturb little; with more, wall time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import yaml
from bench_common import Report, argument_parser, check

from espnet2_sepx.infer.streaming import StreamingSeparator
from espnet2_sepx.profiling.inputs import noise
from espnet2_sepx.profiling.memory import peak_memory
from espnet2_sepx.profiling.model import build_model, load_config, load_parameters, separate

CONF = Path(__file__).resolve().parent.parent / "egs2" / "wsj0_2mix"
FS = 8000
SYSTEMS = ("ours", "speechbrain", "skim")


def speechbrain() -> torch.nn.ModuleDict:
    """SpeechBrain's model of recipes/WSJ0Mix/separation/hparams/resepformer.yaml."""
    from speechbrain.lobes.models import dual_path, resepformer

    block = resepformer.SBTransformerBlock_wnormandskip(
        8, 128, 8, d_ffn=1024, dropout=0.0, use_positional_encoding=True, norm_before=True
    )
    masknet = resepformer.ResourceEfficientSeparator(
        128, causal=False, layer=2, segment_size=150, mem_type="av", seg_model=block,
        mem_model=block,
    )  # fmt: skip
    decoder = dual_path.Decoder(128, 1, 16, stride=8, bias=False)
    parts = {"encoder": dual_path.Encoder(16, 128), "masknet": masknet, "decoder": decoder}
    return torch.nn.ModuleDict(parts).eval()


def prepare(folder: Path) -> None:
    """The same random weights for both."""
    from espnet2_sepx.bin.import_checkpoint import main

    for part, module in speechbrain().items():
        torch.save(module.state_dict(), folder / f"{part}.ckpt")
    main(["--checkpoint", str(folder), "--output_dir", str(folder / "ours")])


def system(name: str, folder: Path) -> Callable[[torch.Tensor], object]:
    if name == "speechbrain":
        model = speechbrain()
        for part, module in model.items():
            module.load_state_dict(torch.load(folder / f"{part}.ckpt", weights_only=True))

        def run(mixture: torch.Tensor) -> object:
            features = model["encoder"](mixture)
            return [model["decoder"](features * mask) for mask in model["masknet"](features)]

        return run
    if name == "ours":
        espnet = build_model(load_config(folder / "ours" / "config.yaml"))
        load_parameters(espnet, folder / "ours" / "imported.pth")
    else:
        espnet = build_model(load_config(CONF / "skim" / "conf" / "train_skim.yaml"))
    return lambda mixture: separate(espnet, mixture, FS)


def work(name: str, folder: Path, seconds: float, threads: int) -> None:
    """The measuring process: a line of JSON for the memory, then one time per line read."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    run, mixture = system(name, folder), noise(round(seconds * FS))
    with torch.no_grad():
        memory = peak_memory(lambda: run(mixture))
        print(json.dumps(memory["peak"] - memory["baseline"]), flush=True)
        for _ in sys.stdin:
            start = clock()
            run(mixture)
            print(json.dumps(clock() - start), flush=True)


def measure(args: argparse.Namespace, folder: Path, seconds: float, threads: int) -> dict:
    """``{system: (seconds, megabytes)}``; the processes take turns."""
    command = [sys.executable, __file__, "--folder", str(folder), "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    processes = {
        name: subprocess.Popen(
            [*command, "--seconds", str(seconds), "--work", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for name in args.systems
    }  # fmt: skip

    def answer(process: subprocess.Popen) -> float:
        assert process.stdout is not None
        return float(json.loads(process.stdout.readline()))

    memory = {name: answer(process) for name, process in processes.items()}
    times: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(args.rounds):
        for name, process in processes.items():
            assert process.stdin is not None
            process.stdin.write("run\n")
            process.stdin.flush()
            times[name].append(answer(process))
    for process in processes.values():
        process.communicate()
    return {name: (median(times[name]), memory[name]) for name in processes}


def compare(args: argparse.Namespace, report: Report) -> None:
    columns = {f"{name}, s": ".3f" for name in args.systems}
    columns |= {f"{name}, MB": ".0f" for name in args.systems}
    others = [name for name in args.systems if name != "ours"]
    ratios = {f"{kind}, ours / {name}": ".2f" for kind in ("time", "memory") for name in others}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for threads in args.threads:
            rows = {}
            for seconds in args.seconds:
                print(f"{threads} thread(s), {seconds:g} s ...", file=sys.stderr, flush=True)
                found = measure(args, folder, seconds, threads)
                kinds = [[found[name][kind] for name in args.systems] for kind in (0, 1)]
                ours = found.get("ours")
                compared = [ours[kind] / found[name][kind] for kind in (0, 1) for name in others]
                rows[f"{seconds:g} s"] = [*kinds[0], *kinds[1], *compared]
            report.table(
                f"RE-SepFormer, {threads} thread(s)",
                columns | ratios,
                rows,
                "Time of a run; memory is what a run adds to the loaded model.",
            )
            for (s1, row1), (s2, row2) in itertools.pairwise(
                zip(args.seconds, rows.values(), strict=True)
            ):
                slope = math.log(row2[0] / row1[0]) / math.log(s2 / s1)
                check(f"{args.systems[0]}, {s1:g} to {s2:g} s: log-log slope of time", slope, None)


def streaming(report: Report) -> None:
    """Real-time factor of causal models, chunk by chunk, with 10 s of memory."""
    torch.set_num_threads(1)
    rows = {}
    for causal, steps in (("causal", [150]), ("strict", [1, 5, 10, 25, 50, 150])):
        path = CONF / "re_sepformer" / "conf" / f"train_re_sepformer_{causal}.yaml"
        config = yaml.safe_load(path.read_text())
        config["separator_conf"]["memory_context"] = 67
        for step in steps:
            stream = StreamingSeparator(build_model(config))
            piece, spent = noise(step * 8), []
            stream.push(noise(8 * 150 * 4))
            for _ in range(max(report.rounds, 300 // step)):
                start = time.process_time()
                stream.push(piece)
                spent.append(time.process_time() - start)
            rows[f"{config['separator_conf']['causal']}, {step} ms at a time"] = [
                1e3 * median(spent),
                sum(spent) / len(spent) / (step * 8 / FS),
                stream.latency * 1e3 / FS,
                stream.nbytes / 1e6,
            ]
    columns = {
        "time, ms": ".2f",
        "real-time factor": ".2f",
        "latency, ms": ".0f",
        "state, MB": ".2f",
    }
    report.table("Streams, 10 s of memory, 1 thread", columns, rows)


def main() -> None:
    parts = {"compare": compare, "streaming": lambda _, report: streaming(report)}
    parser = argument_parser(__doc__, 5)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.work:
        work(args.work, args.folder, args.seconds[0], args.threads[0])
        return
    report = Report(args)
    for part in args.parts:
        parts[part](args, report)


if __name__ == "__main__":
    main()
