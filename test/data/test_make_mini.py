"""The command as a user runs it: what it writes, what it leaves alone, what it refuses."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_sepx.bin.make_mini import main
from espnet2_sepx.data.kaldi import read_scp
from espnet2_sepx.data.metadata import Mixture, RecordedSource, SpokenSource, read_table
from espnet2_sepx.data.overlap import overlap_ratio
from espnet2_sepx.errors import UserError

SETS = ("train", "valid", "test")
SMALL = ["--num_train", "6", "--num_valid", "3", "--num_test", "4"]
FS = 8000


def make(folder: Path, *options: object, nj: int = 1) -> Path:
    """Run the command in this process; tables in ``folder/data``, audio in ``folder/audio``."""
    places = ["--out", folder / "data", "--audio_dir", folder / "audio", "--nj", nj]
    main([str(word) for word in (*places, *options)])
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Hash of each audio file and table below a folder, absolute paths taken out of tables."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "make_mini.json":
            data = path.read_bytes()
            if path.suffix != ".wav":
                data = data.replace(str(folder).encode(), b"")
            hashes[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return hashes


def speak(path: Path, seconds: float = 1.5, fs: int = 16000) -> None:
    """Something with the level changes of speech, different in each file."""
    rng = np.random.default_rng(list(path.name.encode()))
    envelope = np.repeat(rng.uniform(0.1, 1, 50), fs // 5)[: round(seconds * fs)]
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * envelope * rng.standard_normal(len(envelope)), fs)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Speech of eight speakers with two files each, noises, and responses of three rooms."""
    folder = tmp_path_factory.mktemp("recordings")
    for speaker in range(8):
        speak(folder / "speech" / f"spk{speaker}" / f"{speaker}a.wav")
        speak(folder / "speech" / f"spk{speaker}" / f"{speaker}b.flac", fs=22050)
        (folder / "speech" / f"spk{speaker}" / "transcript.txt").write_text("hello")
    for number in range(3):
        speak(folder / "noise" / f"noise{number}.ogg", seconds=4)
        for position in "ab":
            tail = np.geomspace(0.1, 1e-4, 2000) * np.resize([1, -1, -1], 2000)
            response = np.r_[np.zeros(32), 0.9, tail]
            path = folder / "rir" / f"room{number}_{position}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, response, 16000, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("generated"), *SMALL)


@pytest.fixture(scope="module")
def own(tmp_path_factory, recordings) -> Path:
    """A corpus of recordings with everything on."""
    options = ["--speech_dir", recordings / "speech", "--noise_dir", recordings / "noise"]
    options += ["--rir_dir", recordings / "rir", "--overlap_ratio", 0.2, 0.5]
    return make(tmp_path_factory.mktemp("own"), *options)


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("corpus", ["generated", "own"])
def test_tables_name_mixtures_that_are_the_sum_of_their_signals(corpus, request):
    folder = request.getfixturevalue(corpus)
    for name in SETS:
        tables = folder / "data" / name
        wav, spk1, spk2 = (read_scp(tables / f"{kind}.scp") for kind in ("wav", "spk1", "spk2"))
        noise = read_scp(tables / "noise1.scp") if corpus == "own" else {}
        overlap = read_scp(tables / "utt2overlap")
        utt2spk = read_scp(tables / "utt2spk")
        assert list(wav) == list(spk1) == list(spk2) == list(overlap) == list(utt2spk)
        for utt, path in wav.items():
            assert re.fullmatch(rf"{utt2spk[utt]}_\d{{5}}", utt)
            mix, fs = soundfile.read(path, dtype="int16")
            parts = [soundfile.read(t[utt], dtype="int16")[0] for t in (spk1, spk2, noise) if t]
            assert fs == FS
            assert np.array_equal(mix, np.sum(parts, axis=0))
            assert min(np.abs(part).max() for part in parts) > 100  # nothing is silent
            assert np.abs(mix).max() < 0.95 * 32768
            measured = overlap_ratio(parts[0] / 32768, parts[1] / 32768, FS)
            assert float(overlap[utt]) == pytest.approx(measured, abs=1e-4)


@pytest.mark.parametrize("corpus", ["generated", "own"])
def test_sets_share_neither_speakers_nor_audio(corpus, request):
    folder = request.getfixturevalue(corpus)
    speakers, files = [], []
    for name in SETS:
        of_set = read_scp(folder / "data" / name / "source2spk")
        assert of_set.keys() == read_scp(folder / "data" / name / "source.scp").keys()
        speakers += sorted(set(of_set.values()))
        rows = read_table(folder / "data" / name / "metadata.csv", Mixture)
        files += sorted({row.noise.file for row in rows} - {""})
        files += sorted({part.rir for row in rows for part in (row.s1, row.s2)} - {""})
    assert len(speakers) == len(set(speakers))
    assert len(files) == len(set(files))


def test_counts_are_those_asked_for(generated):
    assert [len(read_scp(generated / "data" / name / "wav.scp")) for name in SETS] == [6, 3, 4]


def test_all_recordings_become_sources_at_the_rate_of_the_corpus(own):
    sources = {}
    for name in SETS:
        sources |= read_scp(own / "data" / name / "source.scp")
    assert len(sources) == 16
    assert {soundfile.info(path).samplerate for path in sources.values()} == {FS}


# -- the same again --------------------------------------------------------------------------------


def test_two_processes_make_the_same_corpus(generated, tmp_path):
    assert contents(make(tmp_path, *SMALL, nj=2)) == contents(generated)


def test_another_seed_makes_another(generated, tmp_path):
    assert contents(make(tmp_path, *SMALL, "--seed", 1)).keys() != contents(generated).keys()


@pytest.mark.parametrize("corpus", ["generated", "own"])
def test_the_tables_rebuild_every_file(corpus, request, recordings, tmp_path):
    folder = request.getfixturevalue(corpus)
    options = ["--from_metadata", folder / "data"]
    if corpus == "own":
        for kind in ("speech", "noise", "rir"):
            options += [f"--{kind}_dir", recordings / kind]
    assert contents(make(tmp_path, *options)) == contents(folder)


def test_a_finished_corpus_is_left_alone_and_a_changed_one_replaced(tmp_path, capsys):
    def run(*options: object) -> dict[str, int]:
        make(tmp_path, *SMALL, *options)
        return {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}

    first = run()
    assert run() == first
    assert capsys.readouterr().err.count("already made") == 3
    second = run("--num_test", 2)
    changed = {path for path in first.keys() | second.keys() if first.get(path) != second.get(path)}
    assert changed
    assert all("/test" in path.removeprefix(str(tmp_path)) for path in changed)


def test_changed_recordings_are_noticed(recordings, tmp_path, capsys):
    speech = tmp_path / "speech"
    for split in ("train", "dev", "test"):
        for speaker in "ab":
            speak(speech / split / (split + speaker) / "x.wav")
    make(tmp_path, "--speech_dir", speech)
    speak(speech / "dev" / "deva" / "y.wav")
    capsys.readouterr()
    make(tmp_path, "--speech_dir", speech)
    assert capsys.readouterr().err.count("already made") == 2
    assert len(read_scp(tmp_path / "data" / "valid" / "source.scp")) == 3


def test_a_killed_run_leaves_no_half_set_and_is_completed_by_the_next(generated, tmp_path):
    command = [sys.executable, "-m", "espnet2_sepx.bin.make_mini", *SMALL, "--nj", "2"]
    command += ["--out", str(tmp_path / "data"), "--audio_dir", str(tmp_path / "audio")]
    finished = contents(generated)
    for delay in (0.6, 1.4, 2.0, 2.4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(delay)
        process.kill()
        process.wait()
        for name in SETS:
            if (tmp_path / "data" / name).exists():
                kept = contents(tmp_path)
                for path, digest in finished.items():
                    if f"/{name}/" in path:
                        assert kept[path] == digest
        _assert_group_ends(process.pid)
    make(tmp_path, *SMALL)
    assert contents(tmp_path) == finished
    assert not list(tmp_path.rglob(".*"))


def _assert_group_ends(group: int) -> None:
    """The workers of a killed run end by themselves."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("workers outlive a killed run")


# -- what is refused -------------------------------------------------------------------------------


def _bad(name: str, signal_=None, fs: int = 16000, text: str | None = None, **options):
    """Put a bad file beside the speech of a copy of ``recordings``."""

    def spoil(speech: Path) -> None:
        if text is not None:
            (speech / "spk3" / name).write_text(text)
        else:
            soundfile.write(speech / "spk3" / name, signal_, fs, **options)

    return spoil


SECOND = np.full(16000, 0.1)
REFUSED = {
    "not audio": (_bad("bad.wav", text="hello"), "bad.wav: cannot be read as audio"),
    "unknown format": (_bad("bad.m4a", text="hello"), "bad.m4a: cannot be read as audio"),
    "stereo": (_bad("bad.wav", np.ones((999, 2))), "bad.wav: has 2 channels"),
    "wrong rate": (_bad("bad.wav", SECOND, fs=6000), "bad.wav: sampling rate is 6000"),
    "nan": (_bad("bad.wav", SECOND * np.nan, subtype="FLOAT"), "bad.wav: has NaN"),
    "zero length": (_bad("bad.wav", SECOND[:0]), "bad.wav: has no samples"),
    "silent": (_bad("bad.wav", SECOND * 0), "bad.wav: is silent"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_recordings_stop_it_with_nothing_written(spoil, message, recordings, tmp_path):
    speech = tmp_path / "speech"
    for path in (recordings / "speech").rglob("*.*"):
        link = speech / path.relative_to(recordings / "speech")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    spoil(speech)
    with pytest.raises(UserError, match=message):
        make(tmp_path, "--speech_dir", speech)
    assert [path.name for path in tmp_path.iterdir()] == ["speech"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--speech_dir", "nowhere"], "nowhere: does not exist; give .* --speech_dir"),
        (["--noise_dir", "nowhere"], "nowhere: does not exist; give .* --noise_dir"),
        (["--from_metadata", "nowhere"], r"nowhere: no <set>/metadata\.csv"),
        (["--num_test", "0"], "--num_test must be at least 1"),
        (["--fs", "4000"], "--fs must be at least 8000"),
        (["--fs", "44100"], "--fs 44100: generated speech has 22050 Hz"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--nj", "0"], "--nj 0"),
        (["--overlap_ratio", "0.5", "1.5"], "--overlap_ratio must be"),
        (["--overlap_ratio", "0", "1", "--min_or_max", "min"], "--min_or_max min"),
        (["--noise_snr_db", "0", "5"], "--noise_snr_db: has no effect without noise"),
    ],
)
def test_wrong_options_are_named(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        make(tmp_path, *options)
    assert not list(tmp_path.iterdir())


def test_tables_need_their_material_and_allow_no_other_mixing(generated, own, tmp_path):
    with pytest.raises(UserError, match="was made with --speech_dir"):
        make(tmp_path, "--from_metadata", own / "data")
    with pytest.raises(UserError, match="--seed: has no effect with --from_metadata"):
        make(tmp_path, "--from_metadata", generated / "data", "--seed", 0)
    with pytest.raises(UserError, match="describes audio of 8000 Hz"):
        make(tmp_path, "--from_metadata", generated / "data", "--fs", 16000)


def test_folders_of_others_are_not_touched(recordings, tmp_path):
    (tmp_path / "audio" / "train").mkdir(parents=True)
    (tmp_path / "audio" / "train" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="audio/train: exists and was not made by make_mini"):
        make(tmp_path, *SMALL)
    assert (tmp_path / "audio" / "train" / "thesis.tex").read_text() == "precious"
    with pytest.raises(UserError, match="lies in --speech_dir"):
        make(recordings / "speech", "--speech_dir", recordings / "speech")
    with pytest.raises(UserError, match="choose two folders"):
        main(["--out", str(tmp_path / "x"), "--audio_dir", str(tmp_path / "x")])


def test_the_user_sees_one_line_and_status_2(tmp_path):
    """Here an output folder that cannot be made, below a file."""
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "espnet2_sepx.bin.make_mini", *SMALL]
    command += ["--out", str(tmp_path / "file" / "data"), "--audio_dir", str(tmp_path / "audio")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert re.fullmatch(r"error: cannot write .*file/data: .*; choose a folder.*\n", result.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- real recordings -------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_recordings_work_out_of_the_box(shared_data, tmp_path):
    options = [f"--{kind}_dir={shared_data / kind}" for kind in ("speech", "noise", "rir")]
    make(tmp_path, *options, "--num_train", 20, "--overlap_ratio", 0, 1, nj=2)
    for name, speakers in (("train", 248), ("valid", 35), ("test", 35)):
        of_set = read_scp(tmp_path / "data" / name / "source2spk")
        assert len(set(of_set.values())) == speakers
    table = tmp_path / "data" / "train" / "sources.csv"
    assert read_table(table, SpokenSource, RecordedSource)[0].file.startswith("train/")
