#!/usr/bin/env python3
"""Speed of TF-MoE on this machine: inference, training step, and where the time goes.

    python tools/bench_tf_moe.py                    # everything, a few minutes
    python tools/bench_tf_moe.py --rounds 15 --experts 3 6 12 24
    python tools/bench_tf_moe.py --keep             # and put the tables into docs/SPEED.md

All variants run in turn, round after round, and CPU time of the one computing thread is counted, so
that another program on the machine disturbs all of them alike. Ratios are of medians; minima beside
them show the noise. The yardsticks: the same network in its most literal form
(test/layers/plain.py), a dispatcher that masks expert by expert, feed-forwards made of
``torch.nn.Linear``, and ESPnet's BSRNN of the paper's size.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "test" / "layers"))

import torch  # noqa: E402
import yaml  # noqa: E402
from bench_common import Report, Times, argument_parser, check, measure  # noqa: E402

from espnet2_sepx.layers import attention, band_split, conformer, feed_forward, moe  # noqa: E402
from espnet2_sepx.layers.kernels import keep_freed_memory  # noqa: E402
from espnet2_sepx.separators.tf_moe import TFMoESeparator  # noqa: E402

CONF = ROOT / "egs2" / "libri2mix" / "tf_moe" / "conf"
TARGETS = {
    "inference: MoE E=3 / dense": 1.06,
    "inference: MoE E=6 / dense": 1.08,
    "inference: MoE E=12 / dense": 1.10,
    "inference: MoE E=24 / dense": 1.15,
    "inference: dense / plain": 0.35,
    "feed-forward training step: MoE E=12 / dense": 1.35,
    "feed-forward, MoE E=12 inference: sorted / naive": 0.90,
}


def ratio(times: Times, one: str, other: str, name: str) -> None:
    check(name, median(times[one]) / median(times[other]), TARGETS.get(name))


def separators(experts: list[int]) -> dict[str, torch.nn.Module]:
    models: dict[str, torch.nn.Module] = {
        "dense": TFMoESeparator(257, t_module="conformer", f_module="conformer")
    }
    for number in experts:
        models[f"MoE E={number}"] = TFMoESeparator(257, num_experts=number)
    return {name: model.eval() for name, model in models.items()}


def inference(args: argparse.Namespace, report: Report) -> None:
    import plain
    from espnet2.enh.separator.bsrnn_separator import BSRNNSeparator

    frames = 1 + int(args.seconds * 16000) // 128
    x = torch.randn(1, frames, 257, dtype=torch.complex64)
    lengths = torch.tensor([frames])
    models = separators(args.experts)
    options = yaml.safe_load((CONF / "train_bsrnn.yaml").read_text())["separator_conf"]
    models["BSRNN (ESPnet)"] = BSRNNSeparator(257, **options).eval()
    variants = {name: lambda m=m: m(x, lengths) for name, m in models.items()}
    variants["plain"] = lambda: plain.separate(models["dense"], x)
    with torch.no_grad():
        times = measure(variants, args.rounds)
    report.times(
        f"Inference, {args.seconds:g} s at 16 kHz",
        times,
        "dense",
        "dense: TF-Conformer; plain: the same network in its most literal form. The paper has 1.04 "
        "for E=12 over dense, 1.96 for dense over BSRNN.",
    )
    for number in args.experts:
        ratio(times, f"MoE E={number}", "dense", f"inference: MoE E={number} / dense")
    ratio(times, "dense", "plain", "inference: dense / plain")
    ratio(times, "dense", "BSRNN (ESPnet)", "inference: dense / BSRNN (paper 1.96)")
    check("real-time factor of dense", median(times["dense"]) / args.seconds, None)
    profile({name: variants[name] for name in ("dense", f"MoE E={args.experts[-1]}")}, report)


def profile(variants: dict[str, Callable[[], object]], report: Report) -> None:
    """Time of the parts, by timing the methods that do the work in inference."""
    spent: dict[str, float] = defaultdict(float)

    def timed(owner: type, method: str, label: Callable[[torch.nn.Module], str]) -> None:
        original = getattr(owner, method)

        def wrapper(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
            start = time.thread_time()
            result = original(self, *args, **kwargs)
            spent[label(self)] += time.thread_time() - start
            return result

        setattr(owner, method, wrapper)

    timed(band_split.BandSplit, "forward", lambda _: "band split")
    timed(band_split.MaskDecoder, "forward", lambda _: "mask decoder")
    timed(attention.RelativeAttention, "add_to", lambda layer: f"{layer.axis} attention")
    timed(conformer.ConvModule, "add_to", lambda _: "convolution modules")
    timed(feed_forward.FeedForward, "add_to", lambda _: "feed-forwards")
    timed(moe.MoEFeedForward, "add_to", lambda _: "feed-forwards")
    parts: dict[str, list[float | None]] = {}
    for run in variants.values():
        totals: Times = defaultdict(list)
        with torch.no_grad():
            for _ in range(report.rounds):
                spent.clear()
                start = time.thread_time()
                run()
                spent["all"] = time.thread_time() - start
                for part, seconds in spent.items():
                    totals[part].append(seconds)
        for part, values in totals.items():
            parts.setdefault(part, []).append(1e3 * median(values))
    report.table("Parts of it", {f"{name}, ms": ".1f" for name in variants}, parts)


def feed_forwards(args: argparse.Namespace, report: Report) -> None:
    """One feed-forward on the tokens of 2.4 s: inference and training step."""
    import plain

    keep_freed_memory()
    x = torch.randn(1, 301, 80, 32, requires_grad=True)
    upstream = torch.randn(1, 301, 80, 32)
    dense = feed_forward.FeedForward(32, 4)
    mixture = moe.MoEFeedForward(32, axis="time", num_experts=12)

    def step(layer: torch.nn.Module) -> None:
        y = layer(x)
        if isinstance(y, tuple):
            y, stats = y
            loss = (y * upstream).sum() + 1e-3 * stats.balance
        else:
            loss = (y * upstream).sum()
        torch.autograd.grad(loss, [x, *layer.parameters()])

    parameters = list(mixture.parameters())

    def naive(x: torch.Tensor) -> torch.Tensor:
        return plain.mixture(mixture, x.reshape(-1, 32))[0].view(x.shape)

    linears = torch.nn.Sequential(dense.linear1, torch.nn.SiLU(), dense.linear2)
    times = measure(
        {
            "dense": lambda: step(dense),
            "dense of torch.nn.Linear": lambda: step(linears),
            "MoE E=12": lambda: step(mixture),
            "MoE E=12, naive dispatch": lambda: torch.autograd.grad(
                (naive(x) * upstream).sum(), [x, *parameters]
            ),
        },
        3 * args.rounds,
    )
    report.times("Training step of one feed-forward, 24 080 tokens", times, "dense")
    ratio(times, "MoE E=12", "dense", "feed-forward training step: MoE E=12 / dense")
    ratio(
        times,
        "MoE E=12",
        "dense of torch.nn.Linear",
        "feed-forward training step: MoE E=12 / torch.nn.Linear",
    )
    with torch.no_grad():
        norm = torch.nn.LayerNorm(32)
        y = x.detach().clone()
        times = measure(
            {
                "dense": lambda: dense.add_to(y, norm, 1e-6),
                "MoE E=12": lambda: mixture.add_to(y, norm, 1e-6, None),
                "MoE E=12, naive dispatch": lambda: y.add_(naive(norm(y)), alpha=1e-6),
            },
            3 * args.rounds,
        )
    report.times("One feed-forward in inference, norm and residual included", times, "dense")
    ratio(
        times,
        "MoE E=12",
        "MoE E=12, naive dispatch",
        "feed-forward, MoE E=12 inference: sorted / naive",
    )


def training(args: argparse.Namespace, report: Report) -> None:
    """A training step of a small model, as the `mini` recipe has it."""
    frames, bins = 126, 129
    x = torch.randn(8, frames, bins, dtype=torch.complex64)
    lengths = torch.full((8,), frames)
    options = {"num_bands": 24, "sample_rate": 8000, "num_blocks": 3, "num_experts": 6}

    def variant(kind: str) -> Callable[[], None]:
        model = TFMoESeparator(bins, t_module=kind, f_module=kind, **options)
        optimiser = torch.optim.AdamW(model.parameters(), 1e-4)

        def step() -> None:
            outputs, _, others = model(x, lengths)
            loss = sum((y - x).abs().square().mean() for y in outputs)
            (loss + 1e-3 * others["moe_balance"]).backward()
            optimiser.step()
            optimiser.zero_grad()

        return step

    times = measure({"dense": variant("conformer"), "MoE E=6": variant("moe")}, args.rounds)
    report.times("Training step of a small model (8 x 2 s, 8 kHz, R=3, K=24)", times, "dense")


def main() -> None:
    parts = {"inference": inference, "feed_forwards": feed_forwards, "training": training}
    parser = argument_parser(__doc__, 9)
    parser.add_argument("--seconds", type=float, default=2.4, help="length of the input")
    parser.add_argument("--experts", type=int, nargs="+", default=[12], help="values of E")
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = Report(args)
    for part in args.parts:
        parts[part](args, report)


if __name__ == "__main__":
    main()
