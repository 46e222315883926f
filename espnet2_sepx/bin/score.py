"""Score separated speech against its references.

Writes to --out: utterances.csv (one row per utterance), summary.json (means with 95 % bootstrap
intervals, buckets by overlap, worst utterances, conventions) and RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from espnet2_sepx.errors import run_cli


def get_parser() -> argparse.ArgumentParser:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sepx.bin.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--ref",
        required=True,
        metavar="DIR",
        help="data folder with wav.scp (mixture), spk1.scp, spk2.scp, ... and optional utt2overlap",
    )
    parser.add_argument(
        "--est", required=True, metavar="DIR", help="folder with spk1.scp, spk2.scp, ..."
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--fs", type=int, help="sampling rate in Hz all files must have (default: the first's)"
    )
    parser.add_argument("--nj", type=int, default=1, help="number of processes (default: 1)")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="of si_snr sdr stoi estoi pesq; si_snr and sdr bring their improvements over the "
        "mixture (default: all that installed packages and the rate allow)",
    )
    parser.add_argument(
        "--set_name", help="name of the set in the results (default: name of the --ref folder)"
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    args = get_parser().parse_args(arguments)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # before NumPy: processes share the cores, not threads

    from espnet2_sepx.errors import UserError
    from espnet2_sepx.score.metrics import choose_metrics
    from espnet2_sepx.score.summary import markdown, summarise, write_summary
    from espnet2_sepx.score.table import (
        list_utterances,
        sample_rate_of,
        score_utterances,
        write_table,
    )

    if args.nj < 1:
        raise UserError(f"--nj: expected at least 1, got {args.nj}")
    utterances = list_utterances(args.ref, args.est)
    sample_rate = args.fs or sample_rate_of(utterances[0].mixture)
    metrics, skipped = choose_metrics(args.metrics, sample_rate)
    for name, why in skipped.items():
        print(f"score: without {name}: {why}", file=sys.stderr)
    rows = score_utterances(utterances, sample_rate, metrics, args.nj)

    out = Path(args.out)
    name = args.set_name or Path(args.ref).resolve().name
    summary = summarise(rows, name, sample_rate, skipped)
    (out / "summary.json").unlink(missing_ok=True)  # it comes last and stands for the whole
    write_table(out / "utterances.csv", rows)
    write_summary(out, summary)
    print(markdown(summary).split("\n## Worst")[0])


if __name__ == "__main__":
    run_cli(main)
