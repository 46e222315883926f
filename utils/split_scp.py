#!/usr/bin/env python3
"""Split a table into parts of (nearly) equal numbers of lines, as Kaldi's split_scp.pl does.

Usage: split_scp.py IN OUT1 [OUT2 ...]              all parts
       split_scp.py -j N I [--one-based] IN [OUT]   only part I of 0..N-1 (or 1..N); to stdout
e.g.:  split_scp.py wav.scp log/wav.1.scp log/wav.2.scp log/wav.3.scp

The lines stay in order; the first parts have one line more when the number does not divide.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import NoReturn


def split(lines: list[str], parts: int) -> list[list[str]]:
    """Cut into ``parts`` consecutive lists whose lengths differ by one at most."""
    size, longer = divmod(len(lines), parts)
    bounds = [part * size + min(part, longer) for part in range(parts + 1)]
    return [lines[start:end] for start, end in itertools.pairwise(bounds)]


def fail(message: str) -> NoReturn:
    print(f"error: split_scp.py: {message}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-j", dest="job", nargs=2, type=int, metavar=("N", "I"))
    parser.add_argument("--one-based", action="store_true")
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("outputs", type=Path, nargs="*", metavar="OUT")
    args = parser.parse_args()
    try:
        lines = args.source.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        fail(f"cannot read {args.source}: {error.strerror}")
    parts = args.job[0] if args.job else len(args.outputs)
    if parts < 1 or (args.job and len(args.outputs) > 1):
        fail("give the files to write, or -j N I and at most one file; see --help")
    if parts > len(lines):
        fail(f"{args.source} has {len(lines)} lines, too few for {parts} parts; use a smaller --nj")
    pieces = ["".join(piece) for piece in split(lines, parts)]
    if args.job:
        index = args.job[1] - int(args.one_based)
        if not 0 <= index < parts:
            fail(f"there is no part {args.job[1]} of {parts}")
        pieces = [pieces[index]]
    if not args.outputs:
        sys.stdout.write(pieces[0])
    for path, piece in zip(args.outputs, pieces, strict=False):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(piece, encoding="utf-8")
        except OSError as error:
            fail(f"cannot write {path}: {error.strerror}")


if __name__ == "__main__":
    main()
