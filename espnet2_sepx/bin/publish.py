"""Publish a packed model with a model card: to a folder that any web server can serve as a model
zoo (read by espnet_model_zoo's ModelDownloader), to Hugging Face, or both.

A model without scores (stage 5) or licence is not published.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet2_sepx.errors import run_cli
from espnet2_sepx.files import str2bool


def get_parser() -> argparse.ArgumentParser:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sepx.bin.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pack", required=True, metavar="ZIP", help="packed model (stage 8)")
    parser.add_argument("--exp", required=True, metavar="DIR", help="experiment it was made from")
    parser.add_argument("--name", help="name of the model (default: that of the pack)")
    parser.add_argument("--licence", help="of the model, e.g. CC-BY-4.0 (required)")
    parser.add_argument(
        "--data_licence", help="what the training data are, and under which licence (required)"
    )
    parser.add_argument("--zoo_dir", metavar="DIR", help="folder of a self-hosted model zoo")
    parser.add_argument(
        "--zoo_url", help="web address at which --zoo_dir is served (default: file paths)"
    )
    parser.add_argument("--hf_repo", metavar="USER/NAME", help="repository at Hugging Face")
    parser.add_argument("--corpus", default="", help="column of the zoo's table")
    parser.add_argument("--lang", default="", help="column of the zoo's table, e.g. en")
    parser.add_argument(
        "--dry_run",
        type=str2bool,
        default=False,
        metavar="true|false",
        help="true: show files, sizes and the card, write and send nothing (default: false)",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    args = vars(get_parser().parse_args(arguments))
    from espnet2_sepx.zoo.publish import Request, make_plan, publish

    dry_run = args.pop("dry_run")
    args["name"] = args["name"] or Path(args["pack"]).stem
    plan = make_plan(Request(**args))
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    if dry_run:
        print("\n".join(["Would publish:", *plan.listing(), "", "Model card:", "", plan.card]))
        return
    for address in publish(plan):
        print(f"Published: {address}")


if __name__ == "__main__":
    run_cli(main)
