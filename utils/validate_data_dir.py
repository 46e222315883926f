#!/usr/bin/env python3
"""Check a data directory for separation: tables there, sorted, of the same keys, files there.

Usage: validate_data_dir.py [--check_audio true|false] DIR

With --check_audio true the headers of the audio files are read too: mono, one sampling rate,
mixture and references equally long. Prints the first problems, one a line, and exits with 2 if
there are any.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from espnet2_sepx.data.directory import find_problems, read_data_directory
from espnet2_sepx.errors import run_cli
from espnet2_sepx.files import str2bool

SHOWN = 10


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--check_audio", type=str2bool, default=False, metavar="true|false")
    args = parser.parse_args()
    data = read_data_directory(args.directory)
    problems = list(itertools.islice(find_problems(data, args.check_audio), SHOWN + 1))
    for problem in problems[:SHOWN]:
        print(f"error: {problem}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"error: {args.directory}: more problems, not shown", file=sys.stderr)
    if problems:
        return 2
    print(
        f"{args.directory}: {len(data.signals['wav.scp'])} utterances, no problem", file=sys.stderr
    )
    return 0


if __name__ == "__main__":
    run_cli(main)
