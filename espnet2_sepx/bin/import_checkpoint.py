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
import contextlib
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet2_sepx.errors import UserError, run_cli
from espnet2_sepx.importers import SOURCES, download_patterns, find_source, unpack


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
        "--checkpoint",
        required=True,
        metavar="PATH|USER/NAME",
        help="folder, zip, or Hugging Face id",
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


@contextlib.contextmanager
def _files_of(checkpoint: str, source: str | None) -> Iterator[Path]:
    """The folder with the files of a checkpoint; a zip's is there for the time of the block."""
    path = Path(checkpoint)
    if path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            unpack(path, source, Path(folder))
            yield Path(folder)
    elif path.is_dir():
        yield path
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint):
        from espnet2_sepx.zoo.hub import download

        yield download(checkpoint, download_patterns(source))
    else:
        raise UserError(f"--checkpoint {checkpoint}: no such folder or zip, not an id USER/NAME")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    args = get_parser().parse_args(arguments)
    with _files_of(args.checkpoint, args.source) as folder:
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
