"""Quality and cost of a DSN checkpoint under several budgets: one trade-off curve, no training.

    python -m espnet2_sepx.bin.measure_budgets --config exp/a/config.yaml --out budgets.json \\
        --model_file exp/a/valid.loss.best.pth --data_dir dump/x/test

A budget is a mean utilisation. The gate keeps it by a price on width (separator option
compute_price, printed with the result), or all frames get one width (external_utilization). The
report draws the curve.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from espnet2_sepx.errors import UserError, run_cli

BUDGETS = (0.2, 0.35, 0.5, 0.7)


def get_parser() -> argparse.ArgumentParser:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sepx.bin.measure_budgets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="config.yaml of the experiment")
    parser.add_argument("--model_file", required=True, help="parameters (.pth)")
    parser.add_argument("--data_dir", required=True, type=Path, help="data folder with references")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--fs", type=int, help="sampling rate in Hz (default: of --config)")
    parser.add_argument(
        "--budgets",
        type=float,
        nargs="+",
        default=list(BUDGETS),
        help="mean utilisations (default: %(default)s)",
    )
    parser.add_argument(
        "--max_utterances", type=int, default=20, help="of --data_dir (default: 20)"
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    args = get_parser().parse_args(arguments)
    if not all(0 < budget <= 1 for budget in args.budgets):
        raise UserError(f"--budgets: expected numbers in (0, 1], got {args.budgets}")
    if args.max_utterances < 1:
        raise UserError(f"--max_utterances: expected 1 or more, got {args.max_utterances}")

    from espnet2_sepx.files import atomic_write
    from espnet2_sepx.profiling.budgets import measure_budgets, read_utterances
    from espnet2_sepx.profiling.model import (
        build_model,
        load_config,
        load_parameters,
        sample_rate,
    )

    config = load_config(args.config)
    if str(config.get("separator")).lower() != "dsn":
        raise UserError(
            f"{args.config}: separator {config.get('separator')!r} has no budget; dsn has"
        )
    fs = sample_rate(config, args.fs, args.config)
    model = build_model(config, args.config)
    load_parameters(model, args.model_file)
    utterances = read_utterances(args.data_dir, fs, args.max_utterances)
    if not utterances:
        raise UserError(f"{args.data_dir}/wav.scp: no utterances; run stages 1 and 2")
    found = measure_budgets(model, utterances, fs, args.budgets)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out) as stream:
        stream.write(json.dumps(found, indent=2) + "\n")
    print(f"{'':12} {'utilisation':>11} {'GMAC/s':>8} {'SI-SNRi dB':>11}  compute_price")
    for point in found["points"]:
        gain = "-" if point["si_snri"] is None else f"{point['si_snri']:.2f}"
        price = "" if point["price"] is None else f"{point['price']:.3f}"
        print(
            f"{point['kind']:12} {point['utilization']:11.3f} {point['macs'] / 1e9:8.3f} "
            f"{gain:>11}  {price}"
        )


if __name__ == "__main__":
    run_cli(main)
