#!/usr/bin/env python3
"""Speed and memory of the selective scan and of SPMamba on this machine.

    python tools/bench_spmamba.py                    # everything, some minutes
    python tools/bench_spmamba.py --parts scan --rounds 9
    python tools/bench_spmamba.py --keep             # and put the tables into docs/SPEED.md

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
from collections.abc import Callable
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from bench_common import Report, argument_parser, check, measure
from torch import Tensor

from espnet2_sepx.layers.native import build
from espnet2_sepx.layers.scan import compiled, portable
from espnet2_sepx.layers.scan.inputs import ScanInputs
from espnet2_sepx.profiling.memory import peak_memory
from espnet2_sepx.separators.spmamba import SPMambaSeparator

SHAPES = {"8k freq": (501, 122), "8k time": (129, 494), "16k freq": (501, 250)}
"""Sequences and steps of 4 s of audio."""
FEWER = {"8k freq": 40, "8k time": 10, "16k freq": 20}
"""So many of the sequences are enough for a time per step; mamba-ssm's needs gigabytes for all."""
WIDTH, STATE = 512, 16
LENGTHS = (1, 2, 4, 8, 16)


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


def scan(args: argparse.Namespace, report: Report) -> None:
    found = kernels()
    columns = dict.fromkeys(("reference, ns", "portable, ns"), ".2f")
    columns |= {f"C, {isa}, ns": ".2f" for isa in found}
    rows, errors = {}, []
    for name, (batch, length) in SHAPES.items():
        inputs = scan_inputs(FEWER[name], length)
        variants: dict[str, Callable[[], object]] = {
            "reference": lambda x=inputs: mamba_reference(x),
            "portable": lambda x=inputs: portable.forward(x),
            **{isa: lambda x=inputs, k=kernel: k.forward(x) for isa, kernel in found.items()},
        }
        with torch.no_grad():
            times = measure(variants, args.rounds)
            exact, _ = portable.forward(inputs.to(torch.float64))
        for run in variants.values():
            y = run()
            y = y[0] if isinstance(y, tuple) else y
            errors.append(((y.double() - exact).abs().max() / exact.abs().max()).item())
        work = FEWER[name] * length * WIDTH * STATE
        rows[f"{name}, {batch} x {length}"] = [1e9 * median(v) / work for v in times.values()]
    inputs = scan_inputs(16, 122)
    grad = torch.randn_like(inputs.u)
    both = {
        "portable": lambda: (portable.forward(inputs), portable.backward(inputs, grad, None)),
        **{
            isa: lambda k=kernel: (k.forward(inputs), k.backward(inputs, grad, None))
            for isa, kernel in found.items()
        },
    }
    work = 16 * 122 * WIDTH * STATE
    times = measure(both, args.rounds)
    training = [1e9 * median(values) / work for values in times.values()]
    rows["forward and backward, 16 x 122"] = [None, *training]
    report.table(
        "Scan forward, 512 channels, 16 states",
        columns,
        rows,
        "Per sequence, step, channel and state. The reference is what mamba-ssm computes without "
        f"its extension. Largest error: {max(errors):.1e} of the largest output.",
    )
    for name in SHAPES:
        reference, base, *compiled_ns = next(v for k, v in rows.items() if k.startswith(name))
        check(f"{name}: reference / portable", reference / base, 5, at_least=True)
        for isa, nanoseconds in zip(found, compiled_ns, strict=True):
            target = {"avx2": 2.0, "avx512": 3.5}.get(isa)
            check(f"{name}: portable / {isa}", base / nanoseconds, target, at_least=True)


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


def models(args: argparse.Namespace, report: Report) -> None:
    """Time of 1 s; peak memory above the idle model for the longest, in a process of its own."""
    found, longest = systems(), args.lengths[-1]
    variants = {name: runner(*system, 1.0) for name, system in found.items()}
    with torch.no_grad():
        times = measure(variants, args.rounds)
    command = [sys.executable, __file__, "--lengths", str(longest), "--peak_of"]
    rows = {}
    for name, (model, _) in found.items():
        peak = float(subprocess.run([*command, name], capture_output=True, check=True).stdout)
        parameters = sum(p.numel() for p in model.parameters())
        rows[name] = [parameters / 1e6, median(times[name]), None, peak, None]
    _, seconds, _, peak, _ = rows["TF-GridNetV2"]
    for row in rows.values():
        row[2], row[4] = row[1] / seconds, row[3] / peak
    columns = {"parameters, M": ".2f", "1 s, s": ".2f", "time, ratio": ".3f"}
    columns |= {f"memory of {longest} s, MB": ".0f", "memory, ratio": ".3f"}
    report.table(
        "Whole models at 16 kHz",
        columns,
        rows,
        "TF-GridNetV2 is ESPnet's, of the size in SPMamba's paper. Memory is the peak above the "
        "loaded model.",
    )
    for name, target in (("SPMamba", 0.80), ("SPMamba, portable", 1.8)):
        check(f"{name} / TF-GridNetV2, time", rows[name][2], target)
        check(f"{name} / TF-GridNetV2, memory", rows[name][4], 0.25)


def lengths(args: argparse.Namespace, report: Report) -> None:
    """CPU seconds per second of audio; lengths take turns."""
    model, hop = systems()["SPMamba"]
    variants = {f"{seconds} s": runner(model, hop, seconds) for seconds in args.lengths}
    rounds = max(1, args.rounds // 3)
    with torch.no_grad():
        times = measure(variants, rounds)
    rates = [median(v) / s for v, s in zip(times.values(), args.lengths, strict=True)]
    report.table(
        "SPMamba over the length",
        {f"{seconds:g} s": ".2f" for seconds in args.lengths},
        {"seconds per second of audio": rates},
        rounds=rounds,
    )
    check("largest / smallest", max(rates) / min(rates), 1.15)


def peak_of(name: str, seconds: float) -> None:
    model, hop = systems()[name]
    with torch.no_grad():
        runner(model, hop, 0.1)()
        memory = peak_memory(runner(model, hop, seconds))
    print(memory["peak"] - memory["baseline"])


def main() -> None:
    parts = {"scan": scan, "models": models, "lengths": lengths}
    parser = argument_parser(__doc__, 5)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="seconds")
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.peak_of:
        peak_of(args.peak_of, args.lengths[-1])
        return
    report = Report(args)
    for part in args.parts:
        parts[part](args, report)


if __name__ == "__main__":
    main()
