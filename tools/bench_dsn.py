#!/usr/bin/env python3
"""Does DSN turn skipped work into time? Its speed on this machine at several widths.

    python tools/bench_dsn.py
    python tools/bench_dsn.py --rounds 15 --seconds 16
    python tools/bench_dsn.py --keep                # and put the table into docs/SPEED.md

The paper's network (egs2/wsj0_2mix/dsn/conf), encoder and decoder included, on random weights. The
reference is our best dense network of full width, the static one. The mixed gate has 25 % of the
frames at width 0.125, 35 % at 0.5 and 40 % at 1, in runs of 200 ms or drawn frame by frame. Widths
come from outside, so the gate (0.04 GMAC/s) does not run.

All variants run in turn, round after round, and CPU time of the one computing thread is counted.
Ratios are medians over rounds. The share is that of the ratio of executed multiply-accumulates
which shows in the time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from bench_common import Report, argument_parser, check, measure

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
    parser = argument_parser(__doc__, 9)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the input")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    report = Report(args)
    runs, macs = variants(args.seconds)
    times = measure(runs, args.rounds)
    rows = {}
    for name, values in times.items():
        taken = median(v / d for v, d in zip(values, times[DENSE], strict=True))
        computed = macs[name] / macs[DENSE]
        rows[name] = [macs[name] / 1e9, 1e3 * median(values), taken, computed, computed / taken]
    columns = {"GMAC/s": ".2f", "median, ms": ".1f", "time, ratio": ".2f", "MACs, ratio": ".2f"}
    report.table(
        f"{args.seconds:g} s of audio",
        {**columns, "share": ".2f"},
        rows,
        "Share: so much of the speed-up that the MACs promise shows in the time. Masked: all is "
        "computed and multiplied by zeros.",
    )
    for name, (_, _, taken, _, share) in rows.items():
        if name in SPEED_UPS:
            check(f"speed-up of {name}", 1 / taken, SPEED_UPS[name], at_least=True)
        if name in MAC_SHARES:
            check(f"share of {name}", share, MAC_SHARES[name], at_least=True)


if __name__ == "__main__":
    main()
