"""What we generate is what the published scripts generate."""

import csv
from pathlib import Path

import numpy as np
import official_scripts
import pytest
import soundfile
import trees

from espnet2_sepx.data.corpora import libri2mix, wham, wsj0, wsj0_2mix
from espnet2_sepx.data.corpora.base import Variant
from espnet2_sepx.data.corpora.generate import Options, generate

VARIANTS = [Variant(fs, mode) for fs in (8000, 16000) for mode in ("min", "max")]
ROWS = 50


def options(folder: Path) -> Options:
    return Options(nj=1, listing=folder / "problems.txt", verify_all=True)


def official_rows(tmp_path: Path) -> tuple[Path, list[dict]]:
    """A table with the first rows of the official one, if it is here, else of made-up ones."""
    official = Path(__file__).resolve().parents[3] / "shared/data/metadata/librimix"
    if not official.is_dir():
        paths = trees.make_librispeech(tmp_path / "unused", count=9, seconds=0.01)
        noises = [f"tr/{n}.wav" for n in range(9)]
        official = trees.make_librimix_tables(tmp_path / "made", paths, noises, {"dev-clean": ROWS})
        official /= "metadata/Libri2Mix"
    with open(official / "libri2mix_dev-clean.csv", newline="") as stream:
        rows = [row for row, _ in zip(csv.DictReader(stream), range(ROWS), strict=False)]
    table = tmp_path / "LibriMix/libri2mix_dev-clean.csv"
    table.parent.mkdir()
    with open(table, "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return table, rows


def test_libri2mix_equals_the_official_script_sample_for_sample(tmp_path):
    table, rows = official_rows(tmp_path)
    speech, noise = tmp_path / "LibriSpeech", tmp_path / "wham_noise"
    rng = np.random.default_rng(1)
    for row in rows:
        for path in (row["source_1_path"], row["source_2_path"]):
            if not (speech / path).exists():
                trees.write(speech / path, trees.speech(path, rng.uniform(0.6, 2.0)))
        samples = rng.integers(8500, 40000)  # shorter and longer than one, both or no speech
        trees.write(noise / row["noise_path"], 0.05 * rng.standard_normal((samples, 2)))
    subset = libri2mix.read_subset(table, "dev", "valid", speech, noise)
    made = []
    for variants in (VARIANTS, *([variant] for variant in VARIANTS)):  # what is read depends on it
        root = tmp_path / f"Libri2Mix{len(made)}"
        made.append(libri2mix.Libri2Mix(root, variants, libri2mix.KINDS))
        generate(made[-1], [subset], options(tmp_path))
    for row in rows:
        for variant in VARIANTS:
            expected = official_scripts.libri2mix(speech, noise, row, variant.fs, variant.mode)
            for kind, signal in expected.items():
                soundfile.write(tmp_path / "expected.wav", signal, variant.fs)
                wanted = (tmp_path / "expected.wav").read_bytes()
                for corpus in made:
                    if variant in corpus.variants:
                        path = corpus.folder(variant, "dev") / kind / f"{row['mixture_ID']}.wav"
                        assert path.read_bytes() == wanted


@pytest.mark.parametrize("types", [("mix_clean",), ("mix_clean", "mix_both")])
def test_libri2mix_without_noise_needs_none(tmp_path, corpora, types):
    table = libri2mix.find_table(corpora.librimix, "dev")
    noise = None if types == ("mix_clean",) else corpora.wham_noise
    corpus = libri2mix.Libri2Mix(tmp_path, VARIANTS[:1], types)
    subset = libri2mix.read_subset(table, "dev", "valid", corpora.librispeech, noise)
    generate(corpus, [subset], options(tmp_path))
    assert (tmp_path / "wav8k/min/dev/noise").exists() == (noise is not None)
    both = libri2mix.Libri2Mix(tmp_path / "both", VARIANTS[:1], ("mix_clean", "mix_both"))
    subset = libri2mix.read_subset(table, "dev", "valid", corpora.librispeech, corpora.wham_noise)
    generate(both, [subset], options(tmp_path))
    for kind in ("mix_clean", "s1", "s2"):
        for path in (tmp_path / "wav8k/min/dev" / kind).iterdir():
            other = tmp_path / "both/wav8k/min/dev" / kind / path.name
            assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("layout", ["disks", "upper", "wav"])
def test_wsj0_2mix_is_merls_to_the_last_bit_from_every_layout(tmp_path, corpora, layout):
    root = trees.make_wsj0(tmp_path / "wsj0", layout)
    converted = trees.make_wsj0(tmp_path / "wav", "wav")
    lists = wsj0_2mix.find_lists(corpora.wsj0_lists)
    subsets = wsj0_2mix.read_subsets(lists, wsj0.find_utterances(root), ["train", "test"])
    corpus = wsj0_2mix.Wsj0Mix(tmp_path / "2speakers", VARIANTS)
    generate(corpus, subsets, options(tmp_path))
    for subset in subsets:
        lines = lists[f"mix_2_spk_{subset.name}.txt"].read_text().splitlines()
        assert len(lines) == len(subset.rows)
        for line, row in zip(lines, subset.rows, strict=True):
            first, level1, second, level2 = line.split()
            powers, levels = list(row.values[:2]), [float(level1), float(level2)]
            for variant in VARIANTS:
                paths = [converted / first, converted / second]
                expected = official_scripts.wsj0_2mix(
                    paths, powers, levels, variant.fs, variant.mode
                )
                name = f"{Path(first).stem}_{level1}_{Path(second).stem}_{level2}.wav"
                for kind, signal in expected.items():
                    made = corpus.folder(variant, subset.name) / kind / name
                    assert np.array_equal(soundfile.read(made, dtype="int16")[0], signal)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.folder)
def test_wham_is_that_of_its_scripts(tmp_path, corpora, variant):
    converted = trees.make_wsj0(tmp_path / "wav", "wav")
    found = wsj0.find_utterances(corpora.wsj0)
    corpus = wham.Wham(tmp_path / "wham", [variant], wham.KINDS, from_wsj0=True)
    subset = wham.read_subset(corpora.wham_noise, "train", [variant], found, None)
    generate(corpus, [subset], options(tmp_path))
    table = np.load(corpora.wham_noise / "metadata/scaling_tr.npz", allow_pickle=True)
    for index, name in enumerate(table["utterance_id"]):
        words = name.split("_")
        paths = [converted / f"wsj0/si_tr_s/{word[:3]}/{word}.wav" for word in words[::2]]
        noise = corpora.wham_noise / "tr" / name
        expected = official_scripts.wham(paths, noise, table, index, variant.fs, variant.mode)
        for kind, signal in expected.items():
            made, _ = soundfile.read(corpus.folder(variant, "tr") / kind / name, dtype="float32")
            np.testing.assert_allclose(made, signal, atol=1e-7)


def test_wham_from_wsj0_2mix_equals_wham_from_wsj0(tmp_path, corpora):
    """Where the gains of both agree: the sources of wsj0-2mix are those of WSJ0, scaled."""
    variant = VARIANTS[0]
    found = wsj0.find_utterances(corpora.wsj0)
    lists = wsj0_2mix.find_lists(corpora.wsj0_lists)
    (subset,) = wsj0_2mix.read_subsets(lists, found, ["train"])
    base = wsj0_2mix.Wsj0Mix(tmp_path / "2speakers", [variant])
    generate(base, [subset], options(tmp_path))
    corpus = wham.Wham(tmp_path / "wham", [variant], ["mix_both"], from_wsj0=False)
    tree = tmp_path / "2speakers/wav8k/min"
    rows = wham.read_subset(corpora.wham_noise, "train", [variant], None, tree)
    generate(corpus, [rows], options(tmp_path))
    table = np.load(corpora.wham_noise / "metadata/scaling_tr.npz", allow_pickle=True)
    for index, name in enumerate(table["utterance_id"]):
        source = soundfile.read(tree / "tr/s1" / name)[0]
        made = soundfile.read(tmp_path / "wham/wav8k/min/tr/s1" / name)[0]
        gain = table["scaling_wham_speech_8k_min"][index]
        np.testing.assert_allclose(made, source * gain, atol=1e-7)


def test_a_pickle_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    np.savez(tmp_path / "a.npz", utterance_id=np.array([Evil()], dtype=object))
    with pytest.raises(wham.UserError, match=r"a\.npz: cannot be read .*print has no place"):
        wham.read_npz(tmp_path / "a.npz")
