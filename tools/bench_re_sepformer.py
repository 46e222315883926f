#!/usr/bin/env python3
"""Time and memory of RE-SepFormer over the length of the input, beside SpeechBrain's and SkiM.

    python tools/bench_re_sepformer.py                          # 1 to 64 s, one and two threads
    python tools/bench_re_sepformer.py --seconds 256 --rounds 3 --systems ours speechbrain
    python tools/bench_re_sepformer.py --streaming              # per-chunk real-time factors

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


def compare(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for threads in args.threads:
            print(f"\n{threads} thread(s): seconds of time, MB of memory; ratios to speechbrain")
            curve = []
            for seconds in args.seconds:
                found = measure(args, folder, seconds, threads)
                base = found.get("speechbrain")
                cells = []
                for system_name, (taken, memory) in found.items():
                    ratios = f" ({taken / base[0]:.2f}, {memory / base[1]:.2f})" if base else ""
                    cells.append(f"{system_name} {taken:.3f} s {memory:.0f} MB{ratios}")
                print(f"  {seconds:6.1f} s  " + ";  ".join(cells), flush=True)
                curve.append((seconds, *found[args.systems[0]]))
            for (s1, t1, m1), (s2, t2, m2) in itertools.pairwise(curve):
                slope = math.log(t2 / t1) / math.log(s2 / s1)
                growth = (m2 - m1) / (s2 - s1)
                print(
                    f"  {args.systems[0]} {s1:g} to {s2:g} s: log-log slope {slope:.2f}, "
                    f"{growth:.1f} MB per second"
                )


def streaming(rounds: int) -> None:
    """Real-time factor of causal models, chunk by chunk, with 10 s of memory."""
    torch.set_num_threads(1)
    for causal, steps in (("causal", [150]), ("strict", [1, 5, 10, 25, 50, 150])):
        path = CONF / "re_sepformer" / "conf" / f"train_re_sepformer_{causal}.yaml"
        config = yaml.safe_load(path.read_text())
        config["separator_conf"]["memory_context"] = 67
        for step in steps:
            stream = StreamingSeparator(build_model(config))
            piece, spent = noise(step * 8), []
            stream.push(noise(8 * 150 * 4))
            for _ in range(max(rounds, 300 // step)):
                start = time.process_time()
                stream.push(piece)
                spent.append(time.process_time() - start)
            mean = sum(spent) / len(spent)
            print(
                f"{config['separator_conf']['causal']}, {step} frames ({step} ms) per push: "
                f"{1e3 * median(spent):.2f} ms, real-time factor {mean / (step * 8 / FS):.2f}, "
                f"latency {stream.latency} samples, state {stream.nbytes / 1e6:.2f} MB",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each system")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--streaming", action="store_true", help="measure streams instead")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.work:
        work(args.work, args.folder, args.seconds[0], args.threads[0])
    elif args.streaming:
        streaming(args.rounds)
    else:
        compare(args)


if __name__ == "__main__":
    main()
