"""Prove a packed model: unpack it elsewhere, load it with stock ESPnet in a fresh process, separate
a file, and compare with the output of the original model.

Exit status 0 only if the outputs agree to 1e-5 of the peak and no local file was needed.
"""

from __future__ import annotations

import argparse

from espnet2_sepx.errors import UserError, run_cli


def get_parser() -> argparse.ArgumentParser:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sepx.bin.check_pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pack", required=True, metavar="ZIP", help="written by espnet2.bin.pack")
    parser.add_argument("--exp", required=True, metavar="DIR", help="experiment it was made from")
    parser.add_argument("--wav", required=True, metavar="FILE", help="a mixture to separate")
    parser.add_argument(
        "--model_file",
        metavar="NAME",
        help="weights in the experiment folder (default: the name they have in the pack)",
    )
    parser.add_argument("--fs", type=int, help="sampling rate in Hz that the mixture must have")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    args = get_parser().parse_args(arguments)
    from espnet2_sepx.zoo.pack import open_pack, prove

    pack = open_pack(args.pack)
    if args.fs is not None:
        from espnet2_sepx.score.table import sample_rate_of

        rate = sample_rate_of(args.wav)
        if rate != args.fs:
            raise UserError(f"{args.wav}: {rate} Hz, expected --fs {args.fs}; give another file")
    proof = prove(pack, args.exp, args.model_file, args.wav)
    print(
        f"{args.pack}: unpacked elsewhere it separates {args.wav} ({proof.seconds:.1f} s, "
        f"{proof.sample_rate} Hz) into {proof.speakers} voices as the original does; "
        f"largest difference {proof.largest_difference:.1g} of the peak"
    )


if __name__ == "__main__":
    run_cli(main)
