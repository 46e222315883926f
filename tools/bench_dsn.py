#!/usr/bin/env python3
"""Does DSN turn skipped work into time? Its speed on this machine at several widths.

    python tools/bench_dsn.py
    python tools/bench_dsn.py --rounds 15 --seconds 16

The paper's network (egs2/wsj0_2mix/dsn/conf), encoder and decoder included, on random weights. The
reference is our best dense network of full width, the static one. The mixed gate has 25 % of the
frames at width 0.125, 35 % at 0.5 and 40 % at 1, in runs of 200 ms or drawn frame by frame. Widths
come from outside, so the gate (0.04 GMAC/s) does not run.

All variants run in turn, round after round, and CPU time of the one computing thread is counted.
Ratios are medians over rounds. The share is that of the ratio of executed multiply-accumulates
which shows in the time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from espnet2_sepx.layers.kernels import onednn_linear
from espnet2_sepx.profiling.inputs import noise
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.model import build_model, load_config, separate
from espnet2_sepx.separators.dsn import DSNSeparator

CONF = Path(__file__).resolve().parent.parent / "egs2" / "wsj0_2mix" / "dsn" / "conf"
FS = 8000
SHARES = {0.125: 0.25, 0.5: 0.35, 1.0: 0.40}
DENSE = "dense, width 1"
# What at least shall show: the speed-up, or the share of the MAC ratio.
SPEED_UPS = {"width 1": 0.95, "width 0.125": 5.0}
MAC_SHARES = {"width 0.5": 0.9, "mixed, runs of 200 ms": 0.9}


def mixed_gate(frames: int, run: int) -> torch.Tensor:
    """Widths (T,) of ``SHARES``, in runs of so many frames at random places."""
    number = -(-frames // run)
    widths = [width for width, share in SHARES.items() for _ in range(round(share * number))]
    widths += [1.0] * (number - len(widths))
    order = torch.randperm(number)
    return torch.tensor(widths[:number])[order].repeat_interleave(run)[:frames]


def variants(seconds: float) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """What to run, and MACs per second of it."""
    mixture = noise(round(seconds * FS))
    frames = (mixture.shape[1] - 16) // 8 + 1
    dense, dsn = (build_model(load_config(CONF / f"train_{n}.yaml")) for n in ("static_10", "dsn"))
    dense.load_state_dict(dsn.state_dict(), strict=False)  # all but the gate
    separator = dsn.separator
    assert isinstance(separator, DSNSeparator)

    def run(widths: object, execution: str = "auto") -> None:
        separator.external_utilization = widths  # type: ignore[assignment]
        separator.execution = execution
        separate(dsn, mixture, FS)

    gates: dict[str, object] = {f"width {width:g}": width for width in (1, 0.75, 0.5, 0.25, 0.125)}
    gates["mixed, runs of 200 ms"] = mixed_gate(frames, 200)
    gates["mixed, frame by frame"] = mixed_gate(frames, 1)
    found: dict[str, Callable[[], object]] = {name: partial(run, w) for name, w in gates.items()}
    found["mixed, runs of 200 ms, masked"] = partial(run, gates["mixed, runs of 200 ms"], "masked")
    full = count_macs(dense, lambda: separate(dense, mixture, FS)).total.all
    macs = {DENSE: full / seconds}
    separator.record_cost = True
    for name, variant in found.items():
        variant()
        assert separator.last_cost is not None
        skipped = (separator.last_cost.densest - separator.last_cost.executed).sum().item()
        macs[name] = (full - skipped) / seconds
    separator.record_cost = False
    return {DENSE: lambda: separate(dense, mixture, FS), **found}, macs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each variant")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the input")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    print(f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread")
    print(f"products: {onednn_linear()[1]}")
    runs, macs = variants(args.seconds)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.rounds + 1):  # the first is for warming up
        for name, run in runs.items():
            start = time.thread_time()
            run()
            if turn:
                times[name].append(time.thread_time() - start)
    print(f"{'':32}{'GMAC/s':>8}{'ms':>9}{'best':>8}{'speed-up':>10}{'MAC ratio':>11}{'share':>7}")
    for name, values in times.items():
        speed_up = median(d / v for d, v in zip(times[DENSE], values, strict=True))
        ideal = macs[DENSE] / macs[name]
        share, verdict = speed_up / ideal, ""
        for targets, value in ((SPEED_UPS, speed_up), (MAC_SHARES, share)):
            if name in targets:
                met = "met" if value >= targets[name] else "MISSED"
                verdict = f"  target {targets[name]:g}: {met}"
        print(
            f"{name:32}{macs[name] / 1e9:8.2f}{1e3 * median(values):9.1f}{1e3 * min(values):8.1f}"
            f"{speed_up:10.2f}{ideal:11.2f}{share:7.2f}{verdict}"
        )


if __name__ == "__main__":
    main()
