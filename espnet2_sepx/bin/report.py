"""Write the report of an experiment: report.html (one offline page), RESULTS.md and RESULTS.json.

Reads whatever the other stages left in --exp; parts that are not there yet are named in the page
with the command that makes them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet2_sepx.errors import UserError, run_cli


def get_parser() -> argparse.ArgumentParser:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sepx.bin.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--exp", required=True, type=Path, metavar="DIR", help="experiment folder")
    parser.add_argument(
        "--data_dirs",
        nargs="*",
        type=Path,
        default=[],
        metavar="DIR",
        help="data folders of the separated sets; the name of a folder is the name of its set",
    )
    parser.add_argument(
        "--examples", type=int, default=5, help="mixtures to listen to per set (default: 5)"
    )
    parser.add_argument(
        "--fs", type=int, help="sampling rate in Hz all audio must have (default: the files')"
    )
    parser.add_argument(
        "--model_file",
        type=Path,
        metavar="FILE",
        help="weights to look into (default: valid.si_snr_loss.best.pth of --exp)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (default: report.html in --exp)"
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    args = get_parser().parse_args(arguments)
    if args.examples < 0:
        raise UserError(f"--examples: expected 0 or more, got {args.examples}")

    from espnet2_sepx.files import atomic_write
    from espnet2_sepx.report.build import build_examples, build_routing, build_widths
    from espnet2_sepx.report.collect import collect
    from espnet2_sepx.report.html import render
    from espnet2_sepx.report.results import render_terminal, write_results

    experiment = collect(args.exp, args.data_dirs, args.model_file)
    examples = build_examples(experiment, args.examples, args.fs)
    routing = build_routing(experiment, examples)
    widths = build_widths(experiment, examples)
    page = render(experiment, examples, routing, widths)
    out = args.out or args.exp / "report.html"
    with atomic_write(out) as stream:
        stream.write(page)
    write_results(experiment)
    for part in experiment.missing:
        print(f"report: without {part}; made by: {part.command}", file=sys.stderr)
    print(render_terminal(experiment))
    print(f"\nreport: {out.resolve()} ({len(page) / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_cli(main)
