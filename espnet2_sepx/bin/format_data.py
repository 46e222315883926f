"""Check a data directory and bring its audio to one rate and container (stage 2 of a recipe)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet2_sepx.errors import UserError, run_cli


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sepx.bin.format_data",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--in", dest="source", type=Path, required=True, help="data directory to read"
    )
    parser.add_argument("--out", type=Path, required=True, help="data directory to write")
    parser.add_argument("--fs", type=int, required=True, help="sampling rate in Hz")
    parser.add_argument("--audio_format", choices=("wav", "flac"), default="wav")
    parser.add_argument(
        "--min_s", type=float, default=0.0, help="leave out shorter mixtures (seconds)"
    )
    parser.add_argument(
        "--max_s", type=float, default=0.0, help="leave out longer mixtures (seconds; 0: no limit)"
    )
    parser.add_argument("--nj", type=int, default=1, help="number of processes")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    for name, least in (("fs", 1), ("nj", 1), ("min_s", 0), ("max_s", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}: expected at least {least}, got {getattr(args, name)}")

    from espnet2_sepx.data.format import Target, format_data_directory

    target = Target(args.fs, args.audio_format, args.min_s, args.max_s)
    kept, left_out = format_data_directory(args.source, args.out, target, args.nj)
    note = f", {left_out} left out for their length" if left_out else ""
    print(f"{args.out}: {kept} utterances{note}", file=sys.stderr)


if __name__ == "__main__":
    run_cli(main)
