"""`make_corpus` as a user runs it: what it writes, what it leaves alone, what it refuses."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import trees

from espnet2_sepx.bin.make_corpus import main
from espnet2_sepx.data.directory import find_problems, read_data_directory
from espnet2_sepx.data.kaldi import read_scp
from espnet2_sepx.errors import UserError

CORPORA = ("wsj0_2mix", "wham", "libri2mix", "lrs2_2mix", "echo2mix")
SETS = ("train", "valid", "test")


def words(corpus: str, folder: Path, *options: object) -> list[str]:
    places = ["--out", folder / "data", "--audio_dir", folder / "audio"]
    return [corpus, *map(str, [*places, *options])]


def make(corpus: str, folder: Path, *options: object, nj: int = 1) -> Path:
    main(words(corpus, folder, "--nj", nj, *options))
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file of audio and tables, absolute paths taken out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes().replace(str(folder).encode(), b"")
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".json"
    }


def fs_of(corpus: str) -> int:
    return 16000 if corpus in ("lrs2_2mix", "echo2mix") else 8000


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_corpus_becomes_a_sound_data_directory(corpus, corpora, tmp_path):
    make(corpus, tmp_path, *corpora.options(corpus), "--fs", fs_of(corpus))
    for name in SETS:
        data = read_data_directory(tmp_path / "data" / name)
        assert list(find_problems(data, check_audio=True)) == []
        assert len(data.signals["wav.scp"]) == corpora.count(corpus, name)
        assert bool(data.sources) == (name == "train")
        for utt, speakers in data.tables["utt2spk"].items():
            assert len(set(speakers.split("_"))) == 2
            assert "/" not in utt
        first = next(iter(data.signals["wav.scp"].values()))
        assert soundfile.info(first).samplerate == fs_of(corpus)


@pytest.mark.parametrize("corpus", ["wsj0_2mix", "wham", "libri2mix"])
def test_a_generated_tree_is_read_back_as_what_it_is(corpus, corpora, tmp_path):
    options = ["--mixture", "mix_both"] if corpus == "libri2mix" else []
    make(corpus, tmp_path / "made", *corpora.options(corpus), *options)
    tree = tmp_path / "made/audio"
    make(corpus, tmp_path / "read", f"--{corpus}_dir", tree, *options)
    for name in SETS:
        made, read = (tmp_path / which / "data" / name for which in ("made", "read"))
        for table in sorted(path.name for path in made.iterdir()):
            assert read_scp(made / table) == read_scp(read / table)
        assert (made / "noise1.scp").exists() == (corpus != "wsj0_2mix")


def test_libri2mix_brings_the_tables_other_toolkits_read(corpora, tmp_path):
    make("libri2mix", tmp_path, *corpora.options("libri2mix"), "--types", "mix_single")
    table = tmp_path / "audio/Libri2Mix/wav8k/min/metadata/mixture_dev_mix_single.csv"
    header, *rows = table.read_text().splitlines()
    assert header == "mixture_ID,mixture_path,source_1_path,noise_path,length"
    assert len(rows) == corpora.counts["valid"]
    name, mixture, source, noise, length = rows[0].split(",")
    for path in (mixture, source, noise):
        assert Path(path).stem == name
        assert soundfile.info(path).frames == int(length)


def test_two_processes_make_the_same_corpus(corpora, tmp_path):
    options = corpora.options("libri2mix")
    assert contents(make("libri2mix", tmp_path / "a", *options)) == contents(
        make("libri2mix", tmp_path / "b", *options, nj=2)
    )


def test_a_finished_corpus_is_left_alone(corpora, tmp_path, capsys):
    options = corpora.options("wsj0_2mix")

    def run() -> dict[str, int]:
        make("wsj0_2mix", tmp_path, *options)
        return {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}

    first = run()
    capsys.readouterr()
    assert run() == first
    assert capsys.readouterr().err.count("already made") == 3


def test_a_dry_run_tells_size_and_time_and_writes_nothing(corpora, tmp_path, capsys):
    options = [*corpora.options("wsj0_2mix"), "--min_or_max", "max"]
    make("wsj0_2mix", tmp_path, *options, "--dry_run", "true")
    said = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    promised = float(re.search(r"([\d.]+) GB to write.* about \d+ s", said)[1])
    make("wsj0_2mix", tmp_path, *options)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.wav"))
    assert promised == pytest.approx(written / 1e9, abs=5e-4)
    assert re.search(r"wav8k/max/tr: 12 mixtures, 0.01 h, 36 files", said)


# -- killed, and no room ---------------------------------------------------------------------------


@pytest.mark.parametrize("corpus", ["wham", "libri2mix"])
def test_killed_anywhere_it_ends_with_the_same_files(corpus, corpora, tmp_path):
    options = corpora.options(corpus)
    calm, killed = make(corpus, tmp_path / "calm", *options), tmp_path / "killed"
    command = [sys.executable, "-m", "espnet2_sepx.bin.make_corpus"]
    command += words(corpus, killed, *options, "--nj", 2)
    whole = contents(calm)
    for wanted in (1, 12, 40):  # files that are there when it is killed
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(audio_files(killed)) >= wanted:
                break
            time.sleep(0.01)
        process.kill()
        process.wait()
        wait_for_the_group(process.pid)
        for path in audio_files(killed):
            data = path.read_bytes()
            assert len(data) == 8 + int.from_bytes(data[4:8], "little")  # as its header says
    make(corpus, killed, *options)
    assert contents(killed) == whole
    assert not [path for path in killed.rglob(".*") if path.is_dir()]


def audio_files(folder: Path) -> list[Path]:
    """Also of folders that are just being renamed."""
    return [
        Path(parent) / name
        for parent, _, names in os.walk(folder)
        for name in names
        if name.endswith(".wav")
    ]


def wait_for_the_group(group: int) -> None:
    """The workers of a killed run end by themselves."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("workers outlive a killed run")


def test_a_full_disk_is_said_and_room_lets_it_continue(corpora, tmp_path):
    """On a small file system; the check beforehand is bypassed, as if others filled the disk."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs to be root")
    try:
        filler = small / "filler"
        options = corpora.options("libri2mix")
        with pytest.raises(UserError, match=r"GB are needed, 0\.000 GB free; make room"):
            make("libri2mix", small, *options)
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        code = (
            "import sys, shutil, collections\n"
            "from espnet2_sepx.data.corpora import estimate\n"
            "from espnet2_sepx.errors import run_cli\n"
            "from espnet2_sepx.bin.make_corpus import main\n"
            "estimate._free = lambda folder: 10**12\n"
            "run_cli(main)\n"
        )
        filler.write_bytes(b"x" * 3_700_000)
        command = [sys.executable, "-c", code, *words("libri2mix", small, *options, "--nj", "1")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert "no space left on the disk; make room and run the same command" in result.stderr
        filler.unlink()
        make("libri2mix", small, *options)
        assert contents(small) == contents(make("libri2mix", tmp_path / "calm", *options))
    finally:
        subprocess.run(["umount", str(small)], check=True)


# -- missing, wrong, broken ------------------------------------------------------------------------

MISSING = {
    "wsj0_2mix": ["--wsj0_dir", "--metadata_dir"],
    "wham": ["--wham_noise_dir", "--wsj0_dir"],
    "libri2mix": ["--librispeech_dir", "--metadata_dir"],
    "lrs2_2mix": ["--lrs2_2mix_dir"],
    "echo2mix": ["--echo2mix_dir"],
}


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("what", ["not given", "no folder", "another folder"])
def test_a_missing_or_wrong_corpus_is_one_line_in_seconds(corpus, what, tmp_path):
    folder = tmp_path / "corpus"
    if what == "another folder":
        (folder / "holiday").mkdir(parents=True)
    given = [] if what == "not given" else [w for o in MISSING[corpus] for w in (o, str(folder))]
    command = [sys.executable, "-m", "espnet2_sepx.bin.make_corpus"]
    command += words(
        corpus, tmp_path / "out", *given, *(["--mixture", "mix_clean"] * (corpus == "libri2mix"))
    )
    before = time.process_time() + os.times().children_user + os.times().children_system
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    spent = time.process_time() + os.times().children_user + os.times().children_system - before
    assert result.returncode == 2
    assert spent < 5
    assert re.fullmatch(r"error: .*\n", result.stderr)
    assert "expected" in result.stderr
    assert (f"--{corpus}_dir" if what == "not given" else f"{folder}: ") in result.stderr
    if what == "another folder":
        assert "holiday" in result.stderr or "has no" in result.stderr
    assert not (tmp_path / "out").exists()


def spoilt(corpora, folder: Path) -> Path:
    """LibriSpeech without a speaker, with a file of wrong rate and one that is not audio."""
    speech = folder / "LibriSpeech"
    shutil.copytree(corpora.librispeech, speech)
    shutil.rmtree(speech / "train-clean-100/103")
    first, second = sorted((speech / "train-clean-100/1034").rglob("*.flac"))[:2]
    soundfile.write(first, np.ones(8000), 8000)
    second.write_text("hello")
    return speech


def test_a_partly_broken_corpus_is_reported_by_name_and_skipped_if_wanted(corpora, tmp_path):
    speech = spoilt(corpora, tmp_path)
    options = ["--librispeech_dir", speech, "--metadata_dir", corpora.librimix]
    with pytest.raises(UserError) as raised:
        make("libri2mix", tmp_path, *options)
    message = str(raised.value)
    assert re.search(r"libri2mix: \d+ file\(s\) cannot be used, \d+ of 19 mixtures", message)
    assert re.search(r"folder is missing \(\d\): .*train-clean-100/103/50", message)
    assert re.search(r"sampling rate is 8000 Hz, expected 16000 \(1\): .*1034-", message)
    assert re.search(r"cannot be read as audio .*1034-", message)
    assert "--skip_bad true" in message
    listing = (tmp_path / "data/problems.txt").read_text()
    assert "1034-51-0001.flac: cannot be read as audio" in listing
    assert not list((tmp_path / "audio").rglob("*.wav"))

    make("libri2mix", tmp_path, *options, "--skip_bad", "true")
    kept = read_scp(tmp_path / "data/train/wav.scp")
    concerned = len(re.findall(r"^mixture train-100", listing, re.MULTILINE))
    assert len(kept) == corpora.counts["train"] - concerned > 0
    assert len(read_scp(tmp_path / "data/test/wav.scp")) == corpora.counts["test"]

    options[1] = corpora.librispeech  # mended: the rest is made
    with pytest.raises(UserError, match="was made with other options"):
        make("libri2mix", tmp_path, *options)


def test_a_mended_corpus_is_completed(corpora, tmp_path):
    speech = spoilt(corpora, tmp_path)
    options = ["--librispeech_dir", speech, "--metadata_dir", corpora.librimix]
    make("libri2mix", tmp_path, *options, "--skip_bad", "true")
    shutil.rmtree(speech)
    shutil.copytree(corpora.librispeech, speech)
    make("libri2mix", tmp_path, *options)
    shutil.rmtree(speech)
    make("libri2mix", tmp_path / "calm", *corpora.options("libri2mix"))
    audio = {k: v for k, v in contents(tmp_path / "audio").items() if k.endswith(".wav")}
    calm = contents(tmp_path / "calm/audio")
    assert audio == {name: value for name, value in calm.items() if name.endswith(".wav")}


def test_a_file_damaged_within_is_found_while_mixing(corpora, tmp_path):
    root = trees.make_wsj0(tmp_path / "wsj0", "disks")
    path = sorted((root / "11-1.1").rglob("*.wv1"))[0]
    path.write_bytes(path.read_bytes()[:1500])
    options = ["--wsj0_dir", root, "--metadata_dir", corpora.wsj0_lists]
    with pytest.raises(UserError, match=rf"cannot be decoded .*{path.name}"):
        make("wsj0_2mix", tmp_path, *options)
    make("wsj0_2mix", tmp_path, *options, "--skip_bad", "true")
    names = list(read_scp(tmp_path / "data/train/wav.scp"))
    assert 0 < len(names) < corpora.counts["train"]
    assert not [name for name in names if path.stem in name]


@pytest.mark.parametrize("corpus", ["lrs2_2mix", "echo2mix"])
def test_a_broken_tree_is_reported_by_name(corpus, tmp_path):
    make_tree = {"lrs2_2mix": trees.make_lrs2_2mix, "echo2mix": trees.make_echo2mix}[corpus]
    tree = make_tree(tmp_path / "tree")
    references = sorted(tree.rglob("s2/*.wav" if corpus == "lrs2_2mix" else "spk2_reverb.wav"))
    references[0].unlink()
    soundfile.write(references[-1], np.zeros(99), 16000)
    options = [f"--{corpus}_dir", tree, "--fs", 16000]
    with pytest.raises(UserError) as raised:
        make(corpus, tmp_path, *options)
    assert f"{references[0]}" in str(raised.value)
    assert f"{references[-1]}" in str(raised.value)
    assert "is not as long as its mixture (1)" in str(raised.value)
    make(corpus, tmp_path, *options, "--skip_bad", "true")
    assert sum(len(read_scp(tmp_path / "data" / name / "wav.scp")) for name in SETS) == 10


def test_folders_of_others_are_not_touched(corpora, tmp_path):
    thesis = tmp_path / "audio/2speakers/wav8k/min/tr/thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("precious")
    with pytest.raises(UserError, match="min/tr: exists and was not made by this program"):
        make("wsj0_2mix", tmp_path, *corpora.options("wsj0_2mix"))
    assert thesis.read_text() == "precious"


@pytest.mark.parametrize(
    ("corpus", "options", "message"),
    [
        ("wsj0_2mix", ["--nj", "0"], "--nj 0"),
        ("wsj0_2mix", ["--overlap_ratio", "0.5", "1.5"], "expected values from 0 to 1"),
        ("wham", ["--noise_activity", "1", "0"], "expected MIN <= MAX"),
        ("echo2mix", ["--echo2mix_dir", "x", "--min_or_max", "max"], "exists as min only"),
    ],
)
def test_wrong_options_are_named(corpus, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        main(words(corpus, tmp_path, *options))
