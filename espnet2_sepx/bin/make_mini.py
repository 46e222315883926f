"""Make the `mini` corpus: train, valid and test sets of two-speaker mixtures, ready for a recipe.

By default the speech is generated (espeak-ng; no download, no licence). With --speech_dir it is
yours: DIR/<speaker>/* or DIR/{train,dev,test}/<speaker>/*, any format libsndfile reads, mono.
The same options and seed always give the same files; a set that is complete is not made again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from espnet2_sepx.errors import UserError, run_cli

_SETS = ("train", "valid", "test")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sepx.bin.make_mini",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    bounds: dict[str, Any] = {"type": float, "nargs": 2, "metavar": ("MIN", "MAX")}
    add("--out", type=Path, required=True, help="folder for the sets' tables, data/<tag>")
    add("--audio_dir", type=Path, required=True, help="folder for the audio")
    add("--fs", type=int, help="sampling rate in Hz (8000, or what the tables say)")
    add("--nj", type=int, help="processes (as many as processors, at most 8)")

    material = parser.add_argument_group("material")
    add = material.add_argument
    add("--speech_dir", type=Path, help="clean speech, a folder per speaker, not generated speech")
    add("--noise_dir", type=Path, help="add noise from these files")
    add("--rir_dir", type=Path, help="reverberate with these responses, named <room>_<position>")
    rebuild_help = "rebuild a corpus from its tables DIR/<set>/{sources,metadata}.csv"
    add("--from_metadata", type=Path, metavar="DIR", help=rebuild_help)

    mixing = parser.add_argument_group("mixing (not with --from_metadata: the tables say it)")
    add = mixing.add_argument
    add("--seed", type=int, help="another seed, another corpus (0)")
    for name in _SETS:
        add(f"--num_{name}", type=int, help=f"mixtures of the {name} set (as the material allows)")
    overlap_help = "share (0..1) of the speech that overlaps; the second speaker starts later"
    add("--overlap_ratio", **bounds, help=overlap_help)
    add("--noise_snr_db", **bounds, help="louder speaker over noise, in dB (0 10)")
    level_help = "each speaker is up to X dB above or below their mean (2.5)"
    add("--level_range_db", type=float, metavar="X", help=level_help)
    mode_help = "cut to the shorter signal, or pad to the longer (min; max with --overlap_ratio)"
    add("--min_or_max", choices=("min", "max"), help=mode_help)
    add("--max_seconds", type=float, help="longer recordings are cut into equal pieces (10)")
    # Told apart from "not given", so that --from_metadata can refuse what would have no effect.
    parser.set_defaults(mixing_options=[action.dest for action in mixing._group_actions])
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    if args.nj is not None and args.nj < 1:
        raise UserError(f"--nj {args.nj}: expected 1 or more; leave it out to use all processors")
    given = {n: getattr(args, n) for n in args.mixing_options if getattr(args, n) is not None}

    from espnet2_sepx.data.corpus import Folders, build_sets
    from espnet2_sepx.data.mini import plan_rebuild, plan_sets

    folders = Folders(args.speech_dir, args.noise_dir, args.rir_dir)
    out, audio_dir = args.out.resolve(), args.audio_dir.resolve()
    _keep_apart(out, audio_dir, args)
    if args.from_metadata is not None:
        if given:
            raise UserError(f"--{next(iter(given))}: has no effect with --from_metadata; remove it")
        plans = plan_rebuild(args.from_metadata, folders, audio_dir, args.fs)
    else:
        plans = plan_sets(_options(args.fs or 8000, given, folders), folders, audio_dir)
    num_workers = args.nj or min(8, len(os.sched_getaffinity(0)))
    build_sets(plans, out, audio_dir, folders, num_workers)


def _keep_apart(out: Path, audio_dir: Path, args: argparse.Namespace) -> None:
    """Refuse to write where the material is, and two sets into one folder."""
    if out == audio_dir:
        raise UserError(f"{out}: given for --out and --audio_dir; choose two folders")
    for option in ("speech_dir", "noise_dir", "rir_dir"):
        material = getattr(args, option)
        for folder in (out, audio_dir):
            if material is not None and folder.is_relative_to(material.resolve()):
                raise UserError(f"{folder}: lies in --{option}; choose a folder outside it")


def _options(fs: int, given: dict[str, Any], folders: Any) -> Any:
    """``MiniOptions`` from what was given, the rest by default.

    Raises:
        UserError: a value out of range, or options that exclude one another.
    """
    from espnet2_sepx.data.mini import MiniOptions
    from espnet2_sepx.data.mixing import MixOptions

    if "overlap_ratio" in given and given.get("min_or_max") == "min":
        raise UserError("--min_or_max min: cuts what --overlap_ratio arranges; give one of the two")
    if "noise_snr_db" in given and folders.noise is None:
        raise UserError("--noise_snr_db: has no effect without noise; add --noise_dir")
    overlap = given.get("overlap_ratio")
    try:
        mix = MixOptions(
            fs=fs,
            mode=given.get("min_or_max", "min"),
            level_range_db=given.get("level_range_db", 2.5),
            overlap_ratio=None if overlap is None else tuple(overlap),
            noise_snr_db=tuple(given.get("noise_snr_db", (0.0, 10.0))),
        )
        return MiniOptions(
            mix=mix,
            seed=given.get("seed", 0),
            counts={name: given.get(f"num_{name}") for name in _SETS},
            max_seconds=given.get("max_seconds", 10.0),
        )
    except ValueError as error:
        raise UserError(f"--{error}; see --help") from error


if __name__ == "__main__":
    run_cli(main)
