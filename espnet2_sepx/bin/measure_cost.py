"""What a separator costs: parameters, multiply-accumulates, real-time factor, memory, latency.

    python -m espnet2_sepx.bin.measure_cost --config exp/a/config.yaml --fs 8000 --out a/cost.json
    python -m espnet2_sepx.bin.measure_cost --config conf/train_b.yaml --out b/cost.json \\
        --threads 1 2 --curve --plots true
    python -m espnet2_sepx.bin.measure_cost --compare a/cost.json b/cost.json

Works on any configuration of ESPnet's enh task, ours or ESPnet's own, without data or checkpoint.
The first forms write the JSON file (schema: espnet2_sepx/profiling/cost.py) and a Markdown table
beside it; the last prints one table of several. docs/PROFILING.md explains every figure.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from espnet2_sepx.errors import UserError, run_cli
from espnet2_sepx.files import atomic_write, str2bool


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sepx.bin.measure_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="ESPnet enh configuration (YAML)")
    what.add_argument("--compare", nargs="+", metavar="COST_JSON", help="files to put in one table")
    parser.add_argument("--out", help="cost.json to write; with --compare: Markdown file to write")
    parser.add_argument("--model_file", help="parameters (.pth); default: random ones")
    parser.add_argument("--fs", type=int, help="sampling rate in Hz; default: what --config states")
    parser.add_argument("--seconds", type=float, help="length of the input (default: 2.4)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--wav", help="recording to process instead of noise (its whole length)")
    source.add_argument("--data_dir", help="data directory: process its mixtures, joined, instead")
    parser.add_argument("--channels", type=int, default=1, help="channels of the noise")
    parser.add_argument(
        "--max_utterances", type=int, help="of --data_dir, for the cost over a set (default: all)"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1], help="one or more numbers of CPU threads"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (default: 5)")
    parser.add_argument(
        "--device",
        nargs="+",
        help="cpu, cuda, cuda:N or several (default: cpu, and cuda if there is one)",
    )
    parser.add_argument(
        "--curve",
        type=float,
        nargs="*",
        metavar="SECONDS",
        help="also measure time and memory over the length: these, or 1 to 256 s if none are given",
    )
    parser.add_argument(
        "--max_run_s", type=float, default=60.0, help="longest run of a curve (default: 60 s)"
    )
    parser.add_argument(
        "--max_memory_gb", type=float, help="of a curve (default: 80 %% of what is free)"
    )
    parser.add_argument(
        "--plots",
        type=str2bool,
        default=False,
        help="true: also draw curves and parts beside --out (SVG; needs matplotlib)",
    )
    parser.add_argument(
        "--depth", type=int, default=4, help="how finely to split the model into parts (default: 4)"
    )
    parser.add_argument(
        "--force",
        type=str2bool,
        default=False,
        help="true: --compare even if rates, lengths or rule versions differ",
    )
    return parser


def main() -> int:
    args = build_parser().parse_args()
    if args.compare:
        return _compare(args)
    return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    from espnet2_sepx.profiling import campaign
    from espnet2_sepx.profiling.cost import Request
    from espnet2_sepx.profiling.curve import LENGTHS, Limits, available_memory_mb
    from espnet2_sepx.profiling.table import cost_markdown

    _check(args)
    lengths = [] if args.curve is None else args.curve or LENGTHS
    memory = available_memory_mb() if args.max_memory_gb is None else 1e3 * args.max_memory_gb
    runs = campaign.settings(args.device or campaign.available_devices(), args.threads)
    shared = set(Request.__annotations__) - {"threads", "device"}
    request = Request(**{key: value for key, value in vars(args).items() if key in shared})
    out = Path(args.out)
    # Opened first: a path that cannot be written shows before the measurement, not after it.
    with atomic_write(out.with_suffix(".md")) as table, atomic_write(out) as stream:
        cost = campaign.measure_all(request, runs, lengths, Limits(args.max_run_s, memory))
        markdown = cost_markdown(cost)
        table.write(markdown)
        json.dump(cost, stream, indent=1)
        stream.write("\n")
    if args.plots:
        from espnet2_sepx.profiling.plots import draw_cost

        draw_cost(cost, out)
    print(markdown, end="")
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be found wrong before anything is measured."""
    if not args.out or Path(args.out).suffix != ".json":
        raise UserError(f"--out: expected a .json file to write, got {args.out}; e.g. cost.json")
    numbers = ("fs", "seconds", "channels", "threads", "repeats", "depth", "curve")
    for option in (*numbers, "max_run_s", "max_memory_gb", "max_utterances"):
        value = getattr(args, option)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not 0 < number < float("inf"):
                raise UserError(f"--{option}: must be above 0, got {number:g}")
    for option in ("config", "model_file", "wav"):
        path = getattr(args, option)
        if path is not None and not Path(path).is_file():
            raise UserError(f"{path}: no such file; check --{option}")
    if args.plots:
        _check_plots()


def _check_plots() -> None:
    from espnet2_sepx.profiling.plots import require_matplotlib

    try:
        require_matplotlib()
    except ImportError as error:
        raise UserError(f"--plots true: {error}") from error


def _compare(args: argparse.Namespace) -> int:
    from espnet2_sepx.profiling.cost import read_cost
    from espnet2_sepx.profiling.table import compare_markdown

    costs = [read_cost(path) for path in args.compare]
    markdown = compare_markdown(costs, force=args.force)
    if args.out:
        with atomic_write(args.out) as stream:
            stream.write(markdown)
    if args.plots:
        from espnet2_sepx.profiling.plots import draw_comparison

        _check_plots()
        if not args.out:
            raise UserError("--plots true: give --out too; the plots go beside it")
        draw_comparison(costs, Path(args.out))
    print(markdown, end="")
    return 0


if __name__ == "__main__":
    run_cli(main)
