"""Prepare a corpus of two-speaker mixtures for the recipes: WSJ0-2mix, WHAM!, Libri2Mix, ...

Mixtures that exist are checked and listed; otherwise they are generated from the speech, the noise
and the official lists, the same bytes every time. Stop it when you like: the same command again
continues. With --dry_run true it says how much there is to write, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from espnet2_sepx.errors import UserError, run_cli
from espnet2_sepx.files import str2bool

_GENERATOR = "espnet2_sepx.data.corpora.generate"
_TYPES = ("mix_clean", "mix_both", "mix_single")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sepx.bin.make_corpus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    corpora = parser.add_subparsers(dest="corpus", metavar="CORPUS", required=True)
    wsj0 = _add_corpus(corpora, "wsj0_2mix", "WSJ0-2mix, also partially overlapping")
    _add_paths(wsj0, wsj0_dir="the corpus WSJ0 (LDC93S6A), as distributed or converted")
    _add_paths(wsj0, metadata_dir="lists and active levels: a checkout of pywsj0-mix")
    _add_paths(wsj0, wsj0_2mix_dir="mixtures that exist, instead")
    _add_activity(wsj0)

    wham = _add_corpus(corpora, "wham", "WHAM!, also with noise part of the time")
    _add_paths(wham, wham_noise_dir="wham_noise as distributed")
    _add_paths(wham, wsj0_2mix_dir="wsj0-2mix as generated, or")
    _add_paths(wham, wsj0_dir="the corpus WSJ0 (LDC93S6A)")
    _add_paths(wham, wham_dir="mixtures that exist, instead")
    _add_types(wham, "mix_both")
    _add_activity(wham, noise=True)

    libri = _add_corpus(corpora, "libri2mix", "Libri2Mix")
    _add_paths(libri, librispeech_dir="LibriSpeech, with train-clean-100, dev-clean, ...")
    _add_paths(libri, wham_noise_dir="wham_noise as distributed; not needed for mix_clean")
    _add_paths(libri, metadata_dir="the official tables: a checkout of LibriMix")
    _add_paths(libri, libri2mix_dir="mixtures that exist, instead")
    subset_help = "training set (train-100)"
    libri.add_argument("--train_subset", choices=("train-100", "train-360"), help=subset_help)
    libri.set_defaults(train_subset="train-100")
    _add_types(libri, "mix_clean")

    lrs2 = _add_corpus(corpora, "lrs2_2mix", "LRS2-2Mix")
    _add_paths(lrs2, lrs2_2mix_dir="the archive lrs2.tar.gz, unpacked")
    echo = _add_corpus(corpora, "echo2mix", "Echo2Mix")
    _add_paths(echo, echo2mix_dir="the archive, unpacked")
    return parser


def _add_corpus(corpora: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = corpora.add_parser(name, help=text, description=text)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the sets' tables, data/<tag>")
    add("--audio_dir", type=Path, required=True, help="folder for audio that is generated")
    add("--fs", type=int, choices=(8000, 16000), default=8000, help="sampling rate in Hz (8000)")
    mode_help = "cut to the shorter signal, or pad to the longer (min)"
    add("--min_or_max", choices=("min", "max"), default="min", help=mode_help)
    add("--nj", type=int, help="processes (as many as processors)")
    bools: dict[str, Any] = {"type": str2bool, "metavar": "BOOL", "default": False}
    add("--skip_bad", **bools, help="go on without mixtures whose files are bad (false)")
    add("--dry_run", **bools, help="say what there is to do, write nothing (false)")
    verify_help = "check the sum of all mixtures made, not only of every hundredth (false)"
    add("--verify_all", **bools, help=verify_help)
    return parser


def _add_paths(parser: argparse.ArgumentParser, **options: str) -> None:
    for name, text in options.items():
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=text)


def _add_types(parser: argparse.ArgumentParser, default: str) -> None:
    kinds = ("mix_clean", "mix_both")
    what = f"the mixtures of the tables ({default})"
    parser.add_argument("--mixture", choices=kinds, default=default, help=what)
    also = "kinds of mixture to write besides"
    parser.add_argument("--types", nargs="*", choices=_TYPES, default=[], help=also)


def _add_activity(parser: argparse.ArgumentParser, noise: bool = False) -> None:
    """Options of the partially overlapping corpora of DSN."""
    bounds: dict[str, Any] = {"type": float, "nargs": 2, "metavar": ("MIN", "MAX")}
    values: dict[str, Any] = {"type": float, "nargs": "+", "metavar": "R"}
    add = parser.add_argument
    add("--overlap_ratio", **bounds, help="overlap of train and valid, drawn from this range")
    add("--test_overlap", **values, help="a test set for each of these ratios")
    if noise:
        add("--noise_activity", **bounds, help="share with noise, of train and valid")
        add("--test_noise", **values, help="test sets for each of these shares")
    train_help = "false: leave train as it is, for drawing anew in every epoch (true)"
    add("--partial_train", type=str2bool, metavar="BOOL", default=True, help=train_help)
    add("--seed", type=int, default=0, help="of what is drawn (0)")


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    if args.nj is not None and args.nj < 1:
        raise UserError(f"--nj {args.nj}: expected 1 or more; leave it out to use all processors")

    from espnet2_sepx.data import workers

    nj = args.nj or len(os.sched_getaffinity(0))
    if nj > 1 and getattr(args, f"{args.corpus}_dir") is None:  # there is something to generate
        resampling = ["scipy.signal"] if args.fs != 16000 else []
        workers.start_server([f"espnet2_sepx.data.corpora.{args.corpus}", _GENERATOR, *resampling])

    from espnet2_sepx.data.corpora import prepare
    from espnet2_sepx.data.corpora.base import Variant

    common = prepare.Common(
        out=args.out.resolve(),
        audio_dir=args.audio_dir.resolve(),
        variant=Variant(args.fs, args.min_or_max),
        nj=nj,
        skip_bad=args.skip_bad,
        dry_run=args.dry_run,
        verify_all=args.verify_all,
    )
    for name, value in vars(args).items():
        if isinstance(value, Path):
            setattr(args, name, value.resolve())
    if args.corpus == "wsj0_2mix":
        prepare.prepare_wsj0_2mix(
            common, args.wsj0_dir, args.metadata_dir, args.wsj0_2mix_dir, _activity(args)
        )
    elif args.corpus == "wham":
        prepare.prepare_wham(
            common,
            args.wham_noise_dir,
            args.wsj0_dir,
            args.wsj0_2mix_dir,
            args.wham_dir,
            args.mixture,
            args.types,
            _activity(args),
        )
    elif args.corpus == "libri2mix":
        prepare.prepare_libri2mix(
            common,
            args.librispeech_dir,
            args.wham_noise_dir,
            args.metadata_dir,
            args.libri2mix_dir,
            args.train_subset,
            args.mixture,
            args.types,
        )
    else:
        tree = getattr(args, f"{args.corpus}_dir")
        if tree is None:
            raise UserError(
                f"{args.corpus} needs --{args.corpus}_dir, the unpacked archive; "
                f"{prepare.LAYOUTS[args.corpus]}"
            )
        if args.min_or_max == "max":
            raise UserError(f"--min_or_max max: {args.corpus} exists as min only")
        getattr(prepare, f"prepare_{args.corpus}")(common, tree)


def _activity(args: argparse.Namespace) -> Any:
    """The conditions asked for, or None.

    Raises:
        UserError: a ratio out of range.
    """
    from espnet2_sepx.data.corpora.prepare import Activity

    asked: dict[str, Any] = {
        "overlap": args.overlap_ratio,
        "test_overlaps": args.test_overlap,
        "noise": getattr(args, "noise_activity", None),
        "test_noises": getattr(args, "test_noise", None),
    }
    given = {name: tuple(values) for name, values in asked.items() if values}
    for name, values in given.items():
        if not all(0 <= value <= 1 for value in values):
            raise UserError(f"{name.replace('_', ' ')} {values}: expected values from 0 to 1")
        if name in ("overlap", "noise") and values[0] > values[1]:
            raise UserError(f"{name} {values}: expected MIN <= MAX")
    return Activity(**given, train=args.partial_train, seed=args.seed) if given else None


if __name__ == "__main__":
    run_cli(main)
