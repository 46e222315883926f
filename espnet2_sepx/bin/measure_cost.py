"""What a separator costs: parameters, multiply-accumulates, real-time factor and memory.

    python -m espnet2_sepx.bin.measure_cost --config exp/a/config.yaml --fs 8000 --out a/cost.json
    python -m espnet2_sepx.bin.measure_cost --compare a/cost.json b/cost.json

Works on any configuration of ESPnet's enh task, ours or ESPnet's own, without data or checkpoint.
The first form writes the JSON file and a Markdown table beside it; the second prints one table of
several.
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
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (default: 5)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
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
    from espnet2_sepx.profiling.cost import Request, measure
    from espnet2_sepx.profiling.table import cost_markdown

    if not args.out or Path(args.out).suffix != ".json":
        raise UserError(f"--out: expected a .json file to write, got {args.out}; e.g. cost.json")
    for option in ("fs", "seconds", "channels", "threads", "repeats", "depth"):
        value = getattr(args, option)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{option}: must be above 0, got {value:g}")
    for option in ("config", "model_file", "wav"):
        path = getattr(args, option)
        if path is not None and not Path(path).is_file():
            raise UserError(f"{path}: no such file; check --{option}")
    options = {key: value for key, value in vars(args).items() if key in Request.__annotations__}
    out = Path(args.out)
    # Opened first: a path that cannot be written shows before the measurement, not after it.
    with atomic_write(out.with_suffix(".md")) as table, atomic_write(out) as stream:
        cost = measure(Request(**options))
        markdown = cost_markdown(cost)
        table.write(markdown)
        json.dump(cost, stream, indent=1)
        stream.write("\n")
    print(markdown, end="")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from espnet2_sepx.profiling.cost import read_cost
    from espnet2_sepx.profiling.table import compare_markdown

    markdown = compare_markdown([read_cost(path) for path in args.compare], force=args.force)
    if args.out:
        with atomic_write(args.out) as stream:
            stream.write(markdown)
    print(markdown, end="")
    return 0


if __name__ == "__main__":
    run_cli(main)
