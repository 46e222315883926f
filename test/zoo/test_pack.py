"""A pack is proven by use, and a malicious or local one is refused."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import soundfile
import yaml

from espnet2_sepx.bin import check_pack
from espnet2_sepx.errors import UserError
from espnet2_sepx.zoo import pack as pack_module
from espnet2_sepx.zoo import separate_both
from espnet2_sepx.zoo.pack import extract, local_paths, open_pack, prove, unpack
from espnet2_sepx.zoo.separate_both import opened_files, relative_difference


@pytest.fixture
def same_process(monkeypatch):
    """The second process costs ten seconds; one test starts it, the others stay here."""

    def run(pack, request, folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            separate_both.main(request)

    monkeypatch.setattr(pack_module, "_run_in_fresh_process", run)


def change_weights(exp, change):
    import torch

    path = exp / "3epoch.pth"
    torch.save({k: change(v) for k, v in torch.load(path).items()}, path)


# --- what is inside ------------------------------------------------------------------------------


def test_open_pack_finds_the_parts(trained):
    pack = open_pack(trained.pack)
    assert (pack.config_name, pack.model_name) == ("exp/tiny/config.yaml", "exp/tiny/3epoch.pth")
    assert set(pack.sizes) == {
        "meta.yaml",
        "exp/tiny/config.yaml",
        "exp/tiny/3epoch.pth",
        "exp/tiny/RESULTS.md",
    }


def test_unpack_and_extract_give_the_same_weights(trained, tmp_path):
    pack = open_pack(trained.pack)
    extract(pack, tmp_path / "raw")
    _, weights = unpack(pack, tmp_path / "espnet")
    assert weights.read_bytes() == (tmp_path / "raw" / pack.model_name).read_bytes()


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "..\\evil"])
def test_members_outside_of_the_folder_are_refused(experiment, name):
    with zipfile.ZipFile(experiment.pack, "a") as archive:
        archive.writestr(name, "evil")
    with pytest.raises(UserError, match="outside of the folder"):
        open_pack(experiment.pack)


def test_links_are_refused(experiment):
    with zipfile.ZipFile(experiment.pack, "a") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(UserError, match="outside of the folder"):
        open_pack(experiment.pack)


def test_a_pack_that_points_to_files_of_this_machine_is_refused(trained, tmp_path):
    path = tmp_path / "local.zip"
    config = str(trained.exp / "config.yaml")
    meta = {"yaml_files": {"train_config": config}, "files": {"model_file": "x.pth"}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.yaml", yaml.safe_dump(meta))
        archive.writestr("x.pth", "")
    with pytest.raises(UserError, match="not in the archive; run espnet2"):
        open_pack(path)


@pytest.mark.parametrize("content", [b"no zip", None])
def test_files_that_are_no_packs_are_refused(tmp_path, content):
    path = tmp_path / "model.zip"
    if content is None:
        zipfile.ZipFile(path, "w").close()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"expected a zip file written by 'espnet2\.bin\.pack enh'"):
        open_pack(path)
    with pytest.raises(UserError, match="not found; make it again with stage 8"):
        open_pack(tmp_path / "absent.zip")


def test_local_paths_are_found_at_any_depth():
    config = {"a": [["/data/x.scp", "sound"]], "b": {"c": "/home/u/y"}, "d": "/", "e": "conf/z"}
    assert local_paths(config) == ["/data/x.scp", "/home/u/y"]


# --- proof ---------------------------------------------------------------------------------------


def test_the_command_proves_a_pack_in_a_fresh_process(trained):
    arguments = ["--pack", trained.pack, "--exp", trained.exp, "--wav", trained.wav, "--fs", "8000"]
    arguments += ["--model_file", "valid.loss.best.pth"]
    done = subprocess.run(
        [sys.executable, "-m", "espnet2_sepx.bin.check_pack", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "into 2 voices as the original does; largest difference 0 of the peak" in done.stdout


def test_other_weights_do_not_pass(experiment, same_process):
    pack = open_pack(experiment.pack)
    assert prove(pack, experiment.exp, None, experiment.wav).largest_difference == 0
    change_weights(experiment.exp, lambda weight: 1.01 * weight)
    with pytest.raises(UserError, match=r"its output differs from that of .*3epoch\.pth"):
        prove(pack, experiment.exp, None, experiment.wav)


def test_weights_that_are_more_than_tensors_do_not_pass(experiment, same_process):
    import pickle

    import torch

    torch.save({"w": torch.zeros(1), "code": print}, experiment.exp / "3epoch.pth")
    pack = open_pack(experiment.repack())
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        prove(pack, experiment.exp, None, experiment.wav)


def test_a_model_that_reads_a_local_file_does_not_pass(experiment, same_process, monkeypatch):
    from espnet2.tasks.enh import EnhancementTask

    def build(args, train):
        open(experiment.exp / "RESULTS.md").close()

    monkeypatch.setattr(EnhancementTask, "build_preprocess_fn", build)
    with pytest.raises(UserError, match=r"opened .*RESULTS\.md, a file of this machine"):
        prove(open_pack(experiment.pack), experiment.exp, None, experiment.wav)


def test_a_failing_process_is_told_in_one_line(trained, monkeypatch):
    class Done:
        returncode = 1
        stderr = "Traceback\n  ...\nKeyError: 'tf_moe'\n"

    monkeypatch.setattr(pack_module.subprocess, "run", lambda *_, **__: Done)
    with pytest.raises(UserError, match=r"did not separate .*: KeyError: 'tf_moe'; check"):
        prove(open_pack(trained.pack), trained.exp, None, trained.wav)


def test_missing_files_and_wrong_rates_are_told(trained, tmp_path):
    pack = open_pack(trained.pack)
    with pytest.raises(UserError, match=r"x\.pth: not found"):
        prove(pack, trained.exp, "x.pth", trained.wav)
    wav = tmp_path / "16k.wav"
    soundfile.write(wav, np.zeros(100), 16000)
    with pytest.raises(UserError, match="16000 Hz, expected --fs 8000"):
        check_pack.main(f"--pack {trained.pack} --exp {trained.exp} --wav {wav} --fs 8000".split())


def test_relative_difference():
    original = np.array([[0.5, -2.0]], dtype=np.float32)
    assert relative_difference(original, original) == 0
    assert relative_difference(original + 0.5, original) == pytest.approx(0.25)
    assert relative_difference(np.full_like(original, np.nan), original) == np.inf
    assert relative_difference(original[:, :1], original) == np.inf


def test_opened_files_are_seen_only_inside_the_block(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/a", "b"):
        (tmp_path / name).write_text(json.dumps(name))
    with opened_files([str(tmp_path / "in")]) as opened:
        (tmp_path / "in/a").read_text()
        (tmp_path / "b").read_text()
    (tmp_path / "in/a").read_text()
    assert opened == [str(tmp_path / "in/a")]
