"""Separate recordings of any kind, rate and length with an ESPnet enh model.

    sepx-separate talk.wav meetings/ --model exp/tf_moe_mini_8k --output separated
    arecord -f S16_LE -r 8000 | sepx-separate --stream --model exp/causal --output separated

Inputs: audio files, folders (searched through), Kaldi lists (*.scp). Outputs: NAME_spk1.wav,
NAME_spk2.wav, ... in --output, of the rate and length of the input; separate.json there sums up.
What is finished is not done again; what fails is reported and does not stop the rest.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from espnet2_sepx.errors import UserError, run_cli
from espnet2_sepx.files import str2bool


def get_parser() -> argparse.ArgumentParser:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet2_sepx.bin.separate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="*", metavar="FILE_OR_DIR", help="what to separate")
    parser.add_argument(
        "--model",
        required=True,
        help="experiment folder, packed model (zip), name in --zoo, or Hugging Face id user/name",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="folder for the results; with --stream also -",
    )
    parser.add_argument(
        "--model_file", help="parameters to use (default: the best epoch of the experiment)"
    )
    parser.add_argument(
        "--zoo", help="folder or address of a self-hosted zoo (default: $ESPNET2_SEPX_ZOO)"
    )
    parser.add_argument(
        "--fs",
        type=int,
        help="rate of the model, if its configuration lacks it; recordings may have any rate",
    )

    group = parser.add_argument_group("sound")
    group.add_argument(
        "--channels",
        choices=("mix", "first", "each", "all"),
        default="mix",
        help="of a recording with several: their mean, the first, each for itself, or all together "
        "(models for arrays) (default: mix)",
    )
    group.add_argument(
        "--subtype",
        choices=("FLOAT", "PCM_16", "PCM_24"),
        default="FLOAT",
        help="of the WAV files; PCM is scaled by one gain for all speakers of a recording where it "
        "would clip, see separate.json (default: FLOAT)",
    )
    group.add_argument(
        "--mixture_consistency",
        type=str2bool,
        default=False,
        metavar="true|false",
        help="true: make the streams add up to the mixture (default: false)",
    )
    group.add_argument(
        "--normalize_segment_scale",
        type=str2bool,
        default=False,
        metavar="true|false",
        help="true: give the streams of a chunk the energy of the mixture (default: false)",
    )
    group.add_argument(
        "--activity",
        type=str2bool,
        default=False,
        metavar="true|false",
        help="true: write who speaks when, NAME.rttm (default: false)",
    )

    group = parser.add_argument_group("work")
    group.add_argument("--chunk_s", type=float, help="seconds at a time (default: by model)")
    group.add_argument("--overlap_s", type=float, help="of neighbouring chunks (default: by model)")
    group.add_argument(
        "--budget", type=float, help="part of the work to do, 0..1, of models that let one choose"
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    group.add_argument(
        "--dtype",
        choices=("float32", "bf16"),
        default="float32",
        help="bf16: faster on some devices; checked against float32 first (default: float32)",
    )
    group.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    group.add_argument("--nj", type=int, default=1, help="recordings at a time (default: 1)")
    group.add_argument(
        "--overwrite",
        type=str2bool,
        default=False,
        metavar="true|false",
        help="true: do again what is finished (default: false)",
    )

    group = parser.add_argument_group("live")
    group.add_argument(
        "--stream", action="store_true", help="separate standard input as it comes (causal models)"
    )
    group.add_argument(
        "--pcm", choices=("s16le", "s32le", "f32le"), help="samples of input that is not WAV"
    )
    group.add_argument("--pcm_fs", type=int, default=16000, help="its rate (default: 16000)")
    group.add_argument("--pcm_channels", type=int, default=1, help="its channels (default: 1)")
    group.add_argument(
        "--block_ms", type=float, default=20.0, help="taken in at a time (default: 20)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 if a recording failed."""
    args = get_parser().parse_args(arguments)
    _check(args)
    if args.threads is not None:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, str(args.threads))  # before NumPy and torch start theirs

    from espnet2_sepx.infer.separator import Options

    options = Options(**{name: getattr(args, name) for name in Options.__annotations__})
    return _live(args, options) if args.stream else _batch(args, options)


def _check(args: argparse.Namespace) -> None:
    for name in ("fs", "chunk_s", "threads", "nj", "pcm_fs", "pcm_channels", "block_ms"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name}: must be above 0, got {value:g}")
    if args.stream and args.inputs:
        raise UserError(f"--stream reads standard input; leave {args.inputs[0]} out")
    if not args.stream and not args.inputs:
        raise UserError("nothing to separate; give audio files or folders, or --stream")


def _batch(args: argparse.Namespace, options) -> int:  # type: ignore[no-untyped-def]
    from tqdm import tqdm

    from espnet2_sepx.infer.batch import SUMMARY, run_batch
    from espnet2_sepx.infer.jobs import find_jobs

    output = Path(args.output)
    jobs, failures = find_jobs(args.inputs, output)
    summary = run_batch(
        jobs,
        failures,
        options,
        output,
        subtype=args.subtype,
        activity=args.activity,
        nj=args.nj,
        overwrite=args.overwrite,
        report=lambda line: tqdm.write(f"error: {line}", file=sys.stderr),
    )
    for result in summary["results"]:
        if result["gain"] != 1.0:
            print(f"{result['key']}: all speakers scaled by {result['gain']:.4f}, not to clip")
        if "note" in result:
            print(f"{result['key']}: {result['note']}")
    good = summary["files"] - summary["failed"]
    text = f"{good} of {summary['files']} recordings separated into {output}"
    if summary["done_before"]:
        text += f" ({summary['done_before']} of them before)"
    if summary["rtf"] is not None:
        text += f", {summary['seconds']:.1f} s at real-time factor {summary['rtf']:.3f}"
    if summary["joints"]:
        text += f", {summary['joints_with_low_confidence']} of {summary['joints']} joints uncertain"
    print(f"{text}; see {output / SUMMARY}")
    return 1 if summary["failed"] else 0


def _live(args: argparse.Namespace, options) -> int:  # type: ignore[no-untyped-def]
    from espnet2_sepx.infer.live import PCM, separate_live
    from espnet2_sepx.infer.separator import Separator

    raw = PCM(args.pcm, args.pcm_fs, args.pcm_channels) if args.pcm else None
    separator = Separator(options)
    report = separate_live(
        separator, sys.stdin.buffer, args.output, sys.stdout.buffer, raw, args.block_ms / 1000
    )
    print(
        f"{report.seconds:.2f} s at real-time factor {report.rtf:.3f}; algorithmic latency "
        f"{1000 * report.algorithmic_latency_s:.1f} ms, blocks of {args.block_ms:g} ms, at most "
        f"{1000 * report.longest_wait_s:.1f} ms of computing for one",
        file=sys.stderr,
    )
    return 0


def run() -> None:
    """The command ``sepx-separate``."""
    run_cli(main)


if __name__ == "__main__":
    run()
