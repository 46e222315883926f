"""Make an ESPnet experiment of weights that another toolkit published.

    python -m espnet2_sepx.bin.import_checkpoint \\
        --checkpoint speechbrain/resepformer-wsj02mix --output_dir exp/resepformer

writes config.yaml and imported.pth, which the stock command runs:

    python -m espnet2.bin.enh_inference --train_config exp/resepformer/config.yaml \\
        --model_file exp/resepformer/imported.pth --output_dir separated \\
        --data_path_and_name_and_type mix.scp,speech_mix,sound
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from espnet2_sepx.errors import UserError, run_cli
from espnet2_sepx.importers import SOURCES, download_patterns, find_source


def _option(text: str) -> tuple[str, Any]:
    """``name=value`` with the value in YAML."""
    import yaml

    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected name=value, got {text!r}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: the value is not YAML") from error


def get_parser() -> argparse.ArgumentParser:
    """Command line of this module."""
    sources = "\n".join(f"  {row.name}: {row.reads}" for row in SOURCES)
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sepx.bin.import_checkpoint",
        description=__doc__,
        epilog=f"sources:\n{sources}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR|USER/NAME", help="folder, or Hugging Face id"
    )
    parser.add_argument(
        "--output_dir", required=True, metavar="DIR", help="folder of the experiment, a new one"
    )
    parser.add_argument(
        "--source", choices=[row.name for row in SOURCES], help="default: found out from the files"
    )
    parser.add_argument(
        "--separator_conf",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the separator that the checkpoint does not state, or states wrongly",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    args = get_parser().parse_args(arguments)
    folder = Path(args.checkpoint)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.checkpoint):
            raise UserError(
                f"--checkpoint {args.checkpoint}: no such folder, and not an id USER/NAME"
            )
        from espnet2_sepx.zoo.hub import download

        folder = download(args.checkpoint, download_patterns(args.source))
    imported = find_source(folder, args.source).load(folder, dict(args.separator_conf))
    from espnet2_sepx.importers.experiment import CONFIG, WEIGHTS, write_experiment

    output = Path(args.output_dir)
    parameters = write_experiment(imported, output, args.checkpoint)
    for note in imported.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{output}/{CONFIG}, {WEIGHTS}: {imported.config['separator']}, {parameters:,} parameters"
    )


if __name__ == "__main__":
    run_cli(main)
