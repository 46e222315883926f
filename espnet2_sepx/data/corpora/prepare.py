"""From what a user has of a corpus to data directories: one function for each corpus.

Every function takes ``Common`` and the places of the corpus. A tree that exists is checked and
listed; otherwise the corpus is generated into ``audio_dir``. Sets are called train, valid and test.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import soundfile

from espnet2_sepx.data.corpora import libri2mix, trees, wham, wsj0, wsj0_2mix
from espnet2_sepx.data.corpora.base import Corpus, Made, Variant
from espnet2_sepx.data.corpora.generate import Options, generate
from espnet2_sepx.data.corpora.partial import Condition, Partial, plan_subset
from espnet2_sepx.data.corpora.problems import Problems
from espnet2_sepx.data.corpora.tables import (
    Entry,
    entries_of,
    write_data_directory,
    write_mixture_tables,
)
from espnet2_sepx.data.workers import workers
from espnet2_sepx.errors import UserError

SETS = ("train", "valid", "test")
LAYOUTS = {
    "wsj0_2mix": "expected wsj0-2mix as generated: "
    "DIR/2speakers/wav8k/min/{tr,cv,tt}/{mix,s1,s2}/*.wav",
    "wham": "expected WHAM! as generated: "
    "DIR/wav8k/min/{tr,cv,tt}/{mix_both,mix_clean,s1,s2,noise}/*.wav",
    "libri2mix": "expected Libri2Mix as generated: "
    "DIR/wav8k/min/{train-100,train-360,dev,test}/{mix_clean,mix_both,s1,s2,noise}/*.wav",
    "lrs2_2mix": "expected LRS2-2Mix as released: "
    "DIR/lrs2_rebuild/audio/wav16k/min/{tr,cv,tt}/{mix,s1,s2}/*.wav; "
    "https://huggingface.co/datasets/JusperLee/LRS2-2Mix",
    "echo2mix": "expected Echo2Mix as released: "
    "DIR/{train,val,test}/**/<spk1>_<spk2>/{mix,spk1_reverb,spk2_reverb}.wav",
}
_SPEECH_LAYOUT = (
    "expected LibriSpeech: DIR/{train-clean-100,dev-clean,test-clean}/<spk>/<chapter>/<utt>.flac; "
    "https://www.openslr.org/12"
)


@dataclasses.dataclass(frozen=True)
class Common:
    """What all corpora are told.

    Attributes:
        out: folder for the tables of the sets.
        audio_dir: folder for audio that is generated.
        variant: rate and length.
        nj: processes.
    """

    out: Path
    audio_dir: Path
    variant: Variant
    nj: int
    skip_bad: bool = False
    dry_run: bool = False
    verify_all: bool = False

    @property
    def options(self) -> Options:
        listing = (self.audio_dir if self.dry_run else self.out) / "problems.txt"
        return Options(self.nj, listing, self.skip_bad, self.dry_run, self.verify_all)


@dataclasses.dataclass(frozen=True)
class Activity:
    """Partial overlap and noise activity: ranges for training, one set for each test value.

    ``train`` False leaves training mixtures as they are, for a configuration that draws overlap and
    noise anew in every epoch.
    """

    overlap: tuple[float, float] = (1.0, 1.0)
    test_overlaps: tuple[float, ...] = (1.0,)
    noise: tuple[float, float] = (1.0, 1.0)
    test_noises: tuple[float, ...] = (1.0,)
    train: bool = True
    seed: int = 0

    def conditions(self) -> list[Condition]:
        made = [
            Condition(name, self.overlap, self.noise, either_first=True)
            for name in (("train", "valid") if self.train else ("valid",))
        ]
        for noise in self.test_noises:
            for overlap in self.test_overlaps:
                name = f"test_overlap{round(100 * overlap)}"
                if self.test_noises != (1.0,):
                    name += f"_noise{round(100 * noise)}"
                made.append(Condition(name, (overlap, overlap), (noise, noise)))
        return made


# -- corpora ---------------------------------------------------------------------------------------


def prepare_wsj0_2mix(
    common: Common,
    wsj0_dir: Path | None,
    metadata_dir: Path | None,
    tree_dir: Path | None,
    activity: Activity | None,
) -> None:
    """wsj0-2mix from WSJ0, or from a generated tree; with ``activity``, partially overlapping."""
    base = _base_for_activity(common) if activity else common
    if tree_dir is not None:
        subsets = wsj0_2mix.SETS
        folder = trees.find_tree(
            tree_dir,
            ("2speakers", "wsj0_2mix/2speakers"),
            base.variant,
            "tr/mix",
            LAYOUTS["wsj0_2mix"],
        )
        naming = _wsj0_naming
        list_set = functools.partial(_list_set, folder, subsets, ("mix", "s1", "s2"), naming)
        sets = _from_tree(base, list_set, exactly=True)
    else:
        if wsj0_dir is None or metadata_dir is None:
            raise UserError(
                "wsj0_2mix needs --wsj0_dir (the corpus LDC93S6A) and --metadata_dir (the mixing "
                f"lists), or --wsj0_2mix_dir (mixtures that exist); {wsj0.LAYOUT}"
            )
        utterances = wsj0.find_utterances(wsj0_dir)
        lists = wsj0_2mix.find_lists(metadata_dir)
        subsets_to_make = wsj0_2mix.read_subsets(lists, utterances, SETS)
        corpus = wsj0_2mix.Wsj0Mix(common.audio_dir / "2speakers", (base.variant,))
        sets = _generated(corpus, generate(corpus, subsets_to_make, base.options))
    if activity is not None and not common.dry_run:
        sets = _partial("wsj0_2mix", common, sets, activity)
    _write(common, sets)


def prepare_wham(
    common: Common,
    noise_dir: Path | None,
    wsj0_dir: Path | None,
    wsj0_2mix_dir: Path | None,
    tree_dir: Path | None,
    mixture: str,
    types: Sequence[str],
    activity: Activity | None,
) -> None:
    """WHAM! from wham_noise and wsj0-2mix or WSJ0, or from a generated tree."""
    base = _base_for_activity(common) if activity else common
    kinds = _kinds(mixture, wham.KINDS)
    if tree_dir is not None:
        folder = trees.find_tree(tree_dir, (), base.variant, f"tr/{mixture}", LAYOUTS["wham"])
        list_set = functools.partial(_list_set, folder, wsj0_2mix.SETS, kinds, _wsj0_naming)
        sets = _from_tree(base, list_set, exactly=True)
    else:
        if noise_dir is None or (wsj0_dir is None and wsj0_2mix_dir is None):
            raise UserError(
                "wham needs --wham_noise_dir and --wsj0_2mix_dir (or --wsj0_dir), or --wham_dir "
                f"(mixtures that exist); {wham.NOISE_LAYOUT}"
            )
        if not noise_dir.is_dir():
            raise UserError(f"{noise_dir}: is no folder; {wham.NOISE_LAYOUT}")
        folder_2mix, utterances = None, None
        if wsj0_2mix_dir is not None:
            folder_2mix = trees.find_tree(
                wsj0_2mix_dir, ("2speakers",), base.variant, "tr/s1", LAYOUTS["wsj0_2mix"]
            )
        else:
            assert wsj0_dir is not None
            utterances = wsj0.find_utterances(wsj0_dir)
        corpus = wham.Wham(
            common.audio_dir, (base.variant,), (mixture, *types), from_wsj0=utterances is not None
        )
        subsets = [
            wham.read_subset(noise_dir, name, corpus.variants, utterances, folder_2mix)
            for name in SETS
        ]
        corpus.mixture = mixture
        sets = _generated(corpus, generate(corpus, subsets, base.options))
    if activity is not None and not common.dry_run:
        sets = _partial("wham", common, sets, activity)
    _write(common, sets)


def prepare_libri2mix(
    common: Common,
    speech_dir: Path | None,
    noise_dir: Path | None,
    metadata_dir: Path | None,
    tree_dir: Path | None,
    train_subset: str,
    mixture: str,
    types: Sequence[str],
) -> None:
    """Libri2Mix from LibriSpeech and the official tables, or from a generated tree."""
    subsets = {"train": train_subset, "valid": "dev", "test": "test"}
    kinds = _kinds(mixture, libri2mix.KINDS)
    if tree_dir is not None:
        inside = f"{train_subset}/{mixture}"
        folder = trees.find_tree(
            tree_dir, ("Libri2Mix",), common.variant, inside, LAYOUTS["libri2mix"]
        )
        list_set = functools.partial(_list_set, folder, subsets, kinds, _libri_naming)
        _write(common, _from_tree(common, list_set, exactly=True))
        return
    with_noise = {mixture, *types} != {"mix_clean"}
    if speech_dir is None or metadata_dir is None or (with_noise and noise_dir is None):
        raise UserError(
            "libri2mix needs --librispeech_dir, --metadata_dir (a LibriMix checkout) and, unless "
            "only mix_clean is made, --wham_noise_dir; or --libri2mix_dir (mixtures that exist); "
            f"{_SPEECH_LAYOUT}"
        )
    speech = _find_librispeech(speech_dir, train_subset)
    if with_noise:
        assert noise_dir is not None
        if not (noise_dir / "tr").is_dir():
            raise UserError(f"{noise_dir}: has no folder tr; {wham.NOISE_LAYOUT}")
    plan = [
        libri2mix.read_subset(
            libri2mix.find_table(metadata_dir, subset),
            subset,
            name,
            speech,
            noise_dir if with_noise else None,
        )
        for name, subset in subsets.items()
    ]
    root = common.audio_dir / "Libri2Mix"
    corpus = libri2mix.Libri2Mix(root, (common.variant,), (mixture, *types))
    corpus.mixture = mixture
    made = generate(corpus, plan, common.options)
    if not common.dry_run:
        for subset in made:
            write_mixture_tables(corpus, subset)
    _write(common, _generated(corpus, made))


def prepare_lrs2_2mix(common: Common, tree_dir: Path) -> None:
    """LRS2-2Mix as released (16 kHz); formatting brings it to the rate asked for."""
    tops = ("lrs2_rebuild/audio", "audio")
    released = Variant(16000, "min")
    folder = trees.find_tree(tree_dir, tops, released, "tr/mix", LAYOUTS["lrs2_2mix"])
    kinds = ("mix", "s1", "s2")
    list_set = functools.partial(_list_set, folder, wsj0_2mix.SETS, kinds, _lrs2_naming)
    _write(common, _from_tree(common, list_set, exactly=False))


def prepare_echo2mix(common: Common, tree_dir: Path) -> None:
    """Echo2Mix as released (16 kHz, reverberant references, noise in the mixture only)."""
    subsets = {"train": "train", "valid": "val", "test": "test"}
    if not tree_dir.is_dir():
        raise UserError(f"{tree_dir}: is no folder; {LAYOUTS['echo2mix']}")
    root = next(
        (top for top in (tree_dir, tree_dir / "Echo2Mix") if (top / "train").is_dir()), None
    )
    if root is None:
        raise UserError(f"{tree_dir}: has no folder train; {LAYOUTS['echo2mix']}")

    def list_set(name: str, problems: Problems) -> list[Entry]:
        return trees.list_echo2mix(root / subsets[name], problems)

    _write(common, _from_tree(common, list_set, exactly=False))


# -- what they share -------------------------------------------------------------------------------

ListSet = Callable[[str, Problems], list[Entry]]
Sets = dict[str, list[Entry]]


def _list_set(
    folder: Path,
    subsets: dict[str, str],
    kinds: tuple[str, ...],
    naming: trees.Naming,
    name: str,
    problems: Problems,
) -> list[Entry]:
    return trees.list_entries(folder / subsets[name], kinds, naming, problems)


def _from_tree(common: Common, list_set: ListSet, exactly: bool) -> Sets:
    """Sets of a tree that exists, all files checked."""
    problems = Problems()
    listed = {name: list_set(name, problems) for name in SETS}
    total = len(problems.mixtures) + sum(map(len, listed.values()))
    with workers(common.nj if total > 1000 else 1) as run:
        good = {
            name: trees.check_entries(
                entries, common.variant.fs, exactly, problems, run, f"{name}: checking files"
            )
            for name, entries in listed.items()
        }
    _settle("corpus", problems, total, common)
    for name, entries in good.items():
        if not entries:
            raise UserError(f"no mixture of {name} is left; mend the files")
        if common.dry_run:
            print(f"{name}: {len(entries)} mixtures, {Path(entries[0].mix).parent}")
    return good


def _generated(corpus: Corpus, made: Sequence[Made]) -> Sets:
    return {subset.subset.set_name: entries_of(corpus, subset) for subset in made}


def _base_for_activity(common: Common) -> Common:
    if common.variant.mode != "min":
        raise UserError("--overlap_ratio and --noise_activity start from --min_or_max min")
    return common


def _partial(name: str, common: Common, sets: Sets, activity: Activity) -> Sets:
    """Sets with partial overlap and noise activity, made of fully overlapping ones."""
    first = sets["train"][0]
    kinds = ("mix", "s1", "s2", "noise") if first.noise else ("mix", "s1", "s2")
    subtype = "FLOAT" if soundfile.info(first.mix).subtype in ("FLOAT", "DOUBLE") else "PCM_16"
    root = common.audio_dir / "partial"
    corpus = Partial(name, root, common.variant.fs, kinds, subtype)
    subsets, overlaps, problems = [], {}, Problems()
    with workers(common.nj) as run:
        for condition in activity.conditions():
            entries = sets["test" if condition.name.startswith("test") else condition.name]
            subset, overlap = plan_subset(corpus, condition, entries, activity.seed, problems, run)
            subsets.append(subset)
            overlaps[condition.name] = overlap
    _settle(corpus.name, problems, sum(len(subset.rows) for subset in subsets), common)
    made = generate(corpus, subsets, common.options)
    partial = {
        set_name: [
            dataclasses.replace(entry, overlap=overlaps[set_name][entry.utt]) for entry in entries
        ]
        for set_name, entries in _generated(corpus, made).items()
    }
    return {"train": sets["train"], **partial}


def _settle(what: str, problems: Problems, total: int, common: Common) -> None:
    if problems:
        options = common.options
        print(problems.settle(what, total, options.listing, options.skip_bad), file=sys.stderr)


def _write(common: Common, sets: Sets) -> None:
    if common.dry_run:
        return
    for name, entries in sets.items():
        write_data_directory(common.out / name, entries, with_sources=name == "train")
        print(f"{common.out / name}: {len(entries)} mixtures", file=sys.stderr)


def _kinds(mixture: str, known: Sequence[str]) -> tuple[str, ...]:
    if mixture not in known or mixture == "mix_single":
        raise UserError(f"--mixture {mixture}: expected mix_clean or mix_both")
    return (mixture, "s1", "s2", "noise") if mixture == "mix_both" else (mixture, "s1", "s2")


def _find_librispeech(root: Path, train_subset: str) -> Path:
    if not root.is_dir():
        raise UserError(f"{root}: is no folder; {_SPEECH_LAYOUT}")
    needed = (f"train-clean-{train_subset.removeprefix('train-')}", "dev-clean", "test-clean")
    inner = root / "LibriSpeech"
    top = inner if inner.is_dir() else root
    for name in needed:
        if not (top / name).is_dir():
            raise UserError(f"{top}: has no folder {name}; {_SPEECH_LAYOUT}")
    return top


def _wsj0_naming(name: str) -> tuple[str, tuple[str, str]]:
    return wsj0_2mix.utterance_id(name), wsj0_2mix.speakers_of(name)


def _libri_naming(name: str) -> tuple[str, tuple[str, str]]:
    first, second = name.split("_")
    return name, (first.split("-")[0], second.split("-")[0])


def _lrs2_naming(name: str) -> tuple[str, tuple[str, str]]:
    """``<video1>_<clip1>_<dB1>_<video2>_<clip2>_<dB2>``; a video stands for its speaker."""
    video1, _, _, video2, _, _ = name.split("_")
    return name, (video1, video2)
