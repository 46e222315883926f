"""Partially overlapping mixtures and noise that is there part of the time."""

import numpy as np
import pytest
import soundfile
import trees

from espnet2_sepx.bin.make_corpus import main
from espnet2_sepx.data.corpora.partial import Condition, draw_plan
from espnet2_sepx.data.corpora.tables import Entry
from espnet2_sepx.data.kaldi import read_scp

FS = 8000
RATIOS = (1.0, 0.75, 0.5, 0.25)


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory):
    """A tree of 50 test mixtures, and a few for training."""
    root = tmp_path_factory.mktemp("wsj0_2mix")
    pairs = [(f"440c02{n:02d}", f"22gc01{n:02d}", 1.5) for n in range(50)]
    names = [trees.wsj0_name(pair) for pair in pairs]
    subsets = {"tr": names[:40], "cv": names[:4], "tt": names}
    kinds = {"mix": ("s1", "s2")}
    return trees.make_mixture_tree(root / "2speakers/wav8k/min", subsets, kinds, FS, "PCM_16")


@pytest.fixture(scope="module")
def made(tmp_path_factory, mixtures):
    folder = tmp_path_factory.mktemp("partial")
    options = ["--overlap_ratio", "0.25", "1", "--test_overlap", *map(str, RATIOS)]
    run(folder, mixtures, *options)
    return folder


def run(folder, mixtures, *options):
    places = ["--out", folder / "data", "--audio_dir", folder / "audio", "--nj", 1]
    places += ["--wsj0_2mix_dir", mixtures.parents[2]]
    main(["wsj0_2mix", *map(str, [*places, *options])])


def signals(folder, name, utt):
    tables = folder / "data" / name
    return [
        soundfile.read(read_scp(tables / f"{kind}.scp")[utt], dtype="int16")[0]
        for kind in ("wav", "spk1", "spk2")
    ]


def speech_overlap(first, second):
    """Measured anew: time with both speaking over the shorter speech, by blocks of 10 ms."""
    spans = []
    for signal in (first.astype(float), second.astype(float)):
        power = [np.mean(signal[start : start + 80] ** 2) for start in range(0, len(signal), 80)]
        smooth = np.convolve(power, np.ones(3) / 3, mode="same")
        active = np.flatnonzero(smooth > max(smooth) * 10**-2.5)
        spans.append((active[0], active[-1] + 1))
    both = min(spans[0][1], spans[1][1]) - max(spans[0][0], spans[1][0])
    return max(both, 0) / min(end - start for start, end in spans)


@pytest.mark.parametrize("ratio", RATIOS[1:])
def test_test_sets_have_the_overlap_they_are_named_after(made, ratio):
    name = f"test_overlap{round(100 * ratio)}"
    overlaps = read_scp(made / "data" / name / "utt2overlap")
    assert len(overlaps) == 50
    for utt, overlap in overlaps.items():
        mix, first, second = signals(made, name, utt)
        assert np.array_equal(mix, first + second)
        assert float(overlap) == pytest.approx(ratio, abs=0.015)  # in steps of 10 ms
        assert speech_overlap(first, second) == pytest.approx(ratio, abs=0.02)


def test_full_overlap_is_the_mixture_as_it_was(made, mixtures):
    for utt in read_scp(made / "data/test_overlap100/wav.scp"):
        name = utt.split("_", 2)[2]
        for kind, signal in zip(
            ("mix", "s1", "s2"), signals(made, "test_overlap100", utt), strict=True
        ):
            original, _ = soundfile.read(mixtures / "tt" / kind / f"{name}.wav", dtype="int16")
            assert np.abs(signal.astype(int) - original).max() <= (kind == "mix")


def test_delayed_sources_are_what_they_were(made, mixtures):
    """Shifted by the difference in length, at either end, and never changed or cut."""
    leaders = set()
    for utt in read_scp(made / "data/train/wav.scp"):
        name = utt.split("_", 2)[2]
        _, *parts = signals(made, "train", utt)
        for part, kind in zip(parts, ("s1", "s2"), strict=True):
            original, _ = soundfile.read(mixtures / "tr" / kind / f"{name}.wav", dtype="int16")
            delay = len(part) - len(original)
            at_start, at_end = part[: len(original)], part[delay:]
            assert np.array_equal(at_start, original) or np.array_equal(at_end, original)
            if delay and np.array_equal(at_start, original):
                leaders.add(kind)
    assert leaders == {"s1", "s2"}


def test_training_overlap_covers_its_range_evenly(made):
    overlaps = np.array([float(v) for v in read_scp(made / "data/train/utt2overlap").values()])
    assert 0.249 < overlaps.min() < 0.4
    assert 0.85 < overlaps.max() <= 1.0
    assert abs(overlaps.mean() - 0.625) < 0.12


def test_the_same_seed_makes_the_same_files_another_seed_others(made, mixtures, tmp_path):
    options = ["--overlap_ratio", "0.25", "1", "--test_overlap", "0.5"]

    def audio(folder, *seed):
        run(folder, mixtures, *options, *seed)
        base = folder / "audio/partial/wav8k/min/train/mix"
        return {path.name: path.read_bytes() for path in base.iterdir()}

    first = {
        path.name: path.read_bytes()
        for path in (made / "audio/partial/wav8k/min/train/mix").iterdir()
    }
    assert audio(tmp_path / "same") == first
    assert audio(tmp_path / "other", "--seed", "1") != first


def test_training_mixtures_stay_whole_for_drawing_anew(made, mixtures, tmp_path):
    run(tmp_path, mixtures, "--overlap_ratio", 0.25, 1, "--partial_train", "false")
    for path in read_scp(tmp_path / "data/train/wav.scp").values():
        assert path.startswith(str(mixtures))
    kept, expected = (read_scp(f / "data/valid/utt2overlap") for f in (tmp_path, made))
    assert kept == expected


def test_a_silent_source_does_not_stop_it(tmp_path):
    for name, signal in (("a", np.zeros(FS)), ("b", np.ones(FS) / 2)):
        soundfile.write(tmp_path / f"{name}.wav", signal, FS)
    entry = Entry("utt", ("a", "b"), "", str(tmp_path / "a.wav"), str(tmp_path / "b.wav"))
    assert draw_plan(entry, Condition("test", (0.5, 0.5)), 0).overlap == 0.0


def test_wham_gets_partial_noise_and_overlap(corpora, tmp_path):
    places = ["--out", tmp_path / "data", "--audio_dir", tmp_path / "audio", "--nj", 1]
    options = ["--noise_activity", 0, 1, "--test_noise", 1, 0.5, 0, "--test_overlap", 1, 0.5]
    main(["wham", *map(str, [*places, *corpora.options("wham"), *options])])
    sets = sorted(path.name for path in (tmp_path / "data").iterdir())
    tests = [f"test_overlap{o}_noise{n}" for o in (100, 50) for n in (0, 100, 50)]
    assert sets == sorted(["train", "valid", *tests])
    for name in sets:
        tables = {
            t: read_scp(tmp_path / f"data/{name}/{t}.scp")
            for t in ("wav", "spk1", "spk2", "noise1")
        }
        for utt in tables["wav"]:
            mix, first, second, noise = (
                soundfile.read(t[utt], dtype="float32")[0] for t in tables.values()
            )
            np.testing.assert_allclose(mix, first + second + noise, atol=1e-6)
            active = np.flatnonzero(noise)
            if name.endswith("noise0"):
                assert not len(active)
            elif name.startswith("test"):
                share = int(name.rsplit("noise", 1)[1]) / 100
                assert active[-1] + 1 - active[0] == pytest.approx(share * len(noise), abs=2)
