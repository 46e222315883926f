#!/usr/bin/env python3
"""Speed and memory of the selective scan and of SPMamba on this machine.

    python tools/bench_spmamba.py                    # everything, some minutes
    python tools/bench_spmamba.py --parts scan --rounds 9

All variants run in turn, round after round, and CPU time of the one computing thread is counted, so
that another program on the machine disturbs all of them alike. Ratios are of medians. The
yardsticks: the pure PyTorch reference of mamba-ssm, written down here in its own layout, and
ESPnet's TF-GridNet of the paper's size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet2_sepx.layers.kernels import onednn_linear
from espnet2_sepx.layers.native import build
from espnet2_sepx.layers.scan import compiled, portable
from espnet2_sepx.layers.scan.inputs import ScanInputs
from espnet2_sepx.separators.spmamba import SPMambaSeparator

SHAPES = {"8k freq": (501, 122), "8k time": (129, 494), "16k freq": (501, 250)}
"""Sequences and steps of 4 s of audio."""
FEWER = {"8k freq": 40, "8k time": 10, "16k freq": 20}
"""So many of the sequences are enough for a time per step; mamba-ssm's needs gigabytes for all."""
WIDTH, STATE = 512, 16
LENGTHS = (1, 2, 4, 8, 16)
Times = dict[str, list[float]]


def measure(variants: dict[str, Callable[[], object]], rounds: int) -> Times:
    """CPU seconds of each variant in each round, after one round of warm-up."""
    times: Times = defaultdict(list)
    for turn in range(rounds + 1):
        for name, run in variants.items():
            start = time.thread_time()
            run()
            if turn:
                times[name].append(time.thread_time() - start)
    return times


def verdict(name: str, value: float, target: float, at_least: bool) -> None:
    met = value >= target if at_least else value <= target
    sign = ">=" if at_least else "<="
    print(f"  {name}: {value:.3f}  target {sign} {target}: {'met' if met else 'MISSED'}")


# ---- scan --------------------------------------------------------------------------------------


def mamba_reference(inputs: ScanInputs) -> Tensor:
    """What mamba-ssm's ``selective_scan_ref`` computes, the way it does: time innermost, factors
    and inputs of all steps at once, then a loop."""
    u, dt, B, C, z = (
        t.transpose(1, 2).contiguous() for t in (inputs.u, inputs.dt, inputs.B, inputs.C, inputs.z)
    )
    dt = F.softplus(dt + inputs.dt_bias[:, None])
    A = inputs.A.t()
    factors = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    added = torch.einsum("bdl,bnl,bdl->bdln", dt, B, u)
    state = A.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for step in range(u.shape[2]):
        state = factors[:, :, step] * state + added[:, :, step]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, step]))
    y = torch.stack(outputs, 2) + u * inputs.D[:, None]
    return (y * F.silu(z)).transpose(1, 2)


def scan_inputs(batch: int, length: int, dtype: torch.dtype = torch.float32) -> ScanInputs:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype)

    return ScanInputs(
        u=normal(batch, length, WIDTH),
        dt=normal(batch, length, WIDTH) - 3,
        A=-torch.arange(1.0, STATE + 1, dtype=dtype)[:, None].repeat(1, WIDTH),
        B=normal(batch, length, STATE),
        C=normal(batch, length, STATE),
        D=normal(WIDTH),
        z=normal(batch, length, WIDTH),
        dt_bias=torch.zeros(WIDTH, dtype=dtype),
        dt_softplus=True,
    )


def kernels() -> dict[str, compiled.Kernel]:
    widest = list(build.INSTRUCTION_SETS).index(build.instruction_set())
    return {isa: compiled.Kernel(isa) for isa in list(build.INSTRUCTION_SETS)[widest:]}


def scan(args: argparse.Namespace) -> None:
    found = kernels()
    for name, (batch, length) in SHAPES.items():
        inputs = scan_inputs(FEWER[name], length)
        variants: dict[str, Callable[[], object]] = {
            "mamba-ssm reference": lambda x=inputs: mamba_reference(x),
            "portable": lambda x=inputs: portable.forward(x),
            **{isa: lambda x=inputs, k=kernel: k.forward(x) for isa, kernel in found.items()},
        }
        with torch.no_grad():
            times = measure(variants, args.rounds)
            exact, _ = portable.forward(inputs.to(torch.float64))
        work = FEWER[name] * length * WIDTH * STATE
        print(f"\nScan forward, {name} ({batch} x {length}, of which {FEWER[name]})")
        for variant, values in times.items():
            y = variants[variant]()
            y = y[0] if isinstance(y, tuple) else y
            error = (y.double() - exact).abs().max() / exact.abs().max()
            print(f"  {variant:22}{1e9 * median(values) / work:8.3f} ns  error {error:.1e}")
        seconds = {variant: median(values) for variant, values in times.items()}
        base = seconds["portable"]
        verdict("reference / portable", seconds["mamba-ssm reference"] / base, 5, True)
        for isa, target in (("avx2", 2), ("avx512", 3.5)):
            if isa in seconds:
                verdict(f"portable / {isa}", base / seconds[isa], target, True)
    inputs = scan_inputs(16, 122)
    grad = torch.randn_like(inputs.u)
    times = measure(
        {
            "portable": lambda: (portable.forward(inputs), portable.backward(inputs, grad, None)),
            **{
                isa: lambda k=kernel: (k.forward(inputs), k.backward(inputs, grad, None))
                for isa, kernel in found.items()
            },
        },
        args.rounds,
    )
    print("\nScan forward and backward, 16 x 122")
    for variant, values in times.items():
        print(f"  {variant:22}{1e9 * median(values) / (16 * 122 * WIDTH * STATE):8.3f} ns")


# ---- whole models ------------------------------------------------------------------------------


def systems() -> dict[str, tuple[torch.nn.Module, int]]:
    """Name -> model and the number of samples per frame (0: it takes waveforms)."""
    from espnet2.enh.separator.tfgridnetv2_separator import TFGridNetV2

    torch.manual_seed(0)
    size = {"n_fft": 512, "stride": 128, "lstm_hidden_units": 256, "emb_dim": 32}
    grid = TFGridNetV2(None, n_srcs=2, emb_ks=8, emb_hs=1, attn_approx_qk_dim=512, **size)
    return {
        "TF-GridNetV2": (grid.eval(), 0),
        "SPMamba": (SPMambaSeparator(257).eval(), 128),
        "SPMamba, portable": (SPMambaSeparator(257, scan_backend="torch").eval(), 128),
    }


def runner(model: torch.nn.Module, hop: int, seconds: float) -> Callable[[], object]:
    samples = int(16000 * seconds)
    if hop == 0:
        wave, length = torch.randn(1, samples), torch.tensor([samples])
        return lambda: model(wave, length)
    frames = 1 + samples // hop
    spectrum = torch.randn(1, frames, 257, dtype=torch.complex64)
    return lambda: model(spectrum, torch.tensor([frames]))


def models(args: argparse.Namespace) -> None:
    found = systems()
    variants = {name: runner(*system, 1.0) for name, system in found.items()}
    with torch.no_grad():
        times = measure(variants, args.rounds)
    print("\nWhole models, 1 s at 16 kHz")
    base = median(times["TF-GridNetV2"])
    for name, values in times.items():
        count = sum(p.numel() for p in found[name][0].parameters())
        ratio = median(values) / base
        print(f"  {name:22}{count / 1e6:7.2f} M {median(values):8.2f} s  ratio {ratio:.3f}")
    verdict("SPMamba / TF-GridNetV2", median(times["SPMamba"]) / base, 0.80, False)
    portable_ratio = median(times["SPMamba, portable"]) / base
    verdict("SPMamba, portable / TF-GridNetV2", portable_ratio, 1.8, False)


def lengths(args: argparse.Namespace) -> None:
    """CPU seconds per second of audio; lengths take turns."""
    model, hop = systems()["SPMamba"]
    variants = {f"{seconds} s": runner(model, hop, seconds) for seconds in args.lengths}
    with torch.no_grad():
        times = measure(variants, max(1, args.rounds // 3))
    print("\nSPMamba, CPU seconds per second of audio")
    rates = []
    for (name, values), seconds in zip(times.items(), args.lengths, strict=True):
        rates.append(median(values) / seconds)
        print(f"  {name:>5} {rates[-1]:8.2f}")
    verdict("largest / smallest", max(rates) / min(rates), 1.15, False)


def memory(args: argparse.Namespace) -> None:
    """Peak above the idle model, each in a process of its own."""
    print(f"\nPeak memory above the model, {args.lengths[-1]} s")
    peaks = {}
    for name in ("TF-GridNetV2", "SPMamba", "SPMamba, portable"):
        command = [sys.executable, __file__, "--peak_of", name, "--lengths", str(args.lengths[-1])]
        peaks[name] = float(subprocess.run(command, capture_output=True, check=True).stdout)
        print(f"  {name:22}{peaks[name]:8.0f} MB")
    for name in ("SPMamba", "SPMamba, portable"):
        verdict(f"{name} / TF-GridNetV2", peaks[name] / peaks["TF-GridNetV2"], 0.25, False)


def peak_of(name: str, seconds: float) -> None:
    import resource

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    model, hop = systems()[name]
    with torch.no_grad():
        runner(model, hop, 0.1)()
        run, before = runner(model, hop, seconds), peak()
        run()
    print(peak() - before)


def main() -> None:
    parts = {"scan": scan, "models": models, "lengths": lengths, "memory": memory}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each variant")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="seconds")
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.peak_of:
        peak_of(args.peak_of, args.lengths[-1])
        return
    print(f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread")
    print(f"products: {onednn_linear()[1]}; scan: {compiled.probe()[1]}")
    for part in args.parts:
        parts[part](args)


if __name__ == "__main__":
    main()
