"""What a model may be called, and that the light way of building it gives ESPnet's own."""

from __future__ import annotations

import functools
import hashlib
import http.server
import pickle
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from sepx_models import SKIM, TF_MOE, make_experiment

from espnet2_sepx.errors import UserError
from espnet2_sepx.infer import find
from espnet2_sepx.infer.build import ESPNET, build_network, load_network
from espnet2_sepx.infer.find import ZOO_VARIABLE, find_model


def pack(exp: Path, path: Path, **more: str) -> Path:
    meta = {"yaml_files": {"train_config": "e/config.yaml"}, "files": {"model_file": "e/m.pth"}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.yaml", yaml.safe_dump(meta))
        archive.write(exp / "config.yaml", "e/config.yaml")
        archive.write(exp / "valid.si_snr_loss.best.pth", "e/m.pth")
        for name, text in more.items():
            archive.writestr(name, text)
    return path


def same_parameters(one, other) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_folder_config_and_zip_are_the_same_model(tf_moe_exp, tmp_path):
    reference = load_network(find_model(str(tf_moe_exp)))
    for name in (tf_moe_exp / "config.yaml", pack(tf_moe_exp, tmp_path / "model.zip")):
        assert same_parameters(load_network(find_model(str(name))), reference)
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    assert same_parameters(load_network(find_model(str(tmp_path / "unpacked"))), reference)


def test_parameters_can_be_chosen_and_are_chosen_well(tmp_path):
    exp = make_experiment(tmp_path, SKIM)
    assert find_model(str(exp)).weights.endswith("valid.si_snr_loss.best.pth")
    (exp / "3epoch.pth").write_bytes(b"")
    assert find_model(str(exp), "3epoch.pth").weights.endswith("3epoch.pth")
    (exp / "4epoch.pth").write_bytes(b"")
    (exp / "valid.si_snr_loss.best.pth").unlink()
    with pytest.raises(
        UserError, match=r"found: 3epoch\.pth, 4epoch\.pth; name one with --model_f"
    ):
        find_model(str(exp))
    with pytest.raises(UserError, match=r"--model_file 5epoch\.pth: no such file"):
        find_model(str(exp), "5epoch.pth")


def zoo_folder(folder: Path, exp: Path, url: str = "") -> Path:
    path = pack(exp, folder / "tiny.zip")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "table.csv").write_text(f"name,url,sha256\ntiny,{url}tiny.zip,{digest}\n")
    return folder


def test_a_name_in_a_zoo_folder(tf_moe_exp, tmp_path, monkeypatch):
    zoo = zoo_folder(tmp_path, tf_moe_exp)
    assert find_model("tiny", zoo=str(zoo)).archive == zoo / "tiny.zip"
    monkeypatch.setenv(ZOO_VARIABLE, str(zoo))
    assert find_model("tiny").archive == zoo / "tiny.zip"
    with pytest.raises(UserError, match=r"the zoo .* has: tiny; give"):
        find_model("user/large")
    pack(tf_moe_exp, zoo / "tiny.zip", changed="yes")
    with pytest.raises(UserError, match=r"is not what the zoo's table says \(sha256\)"):
        find_model("tiny")


def test_a_name_in_a_zoo_on_the_web(tf_moe_exp, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "zoo").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "zoo")
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        zoo_folder(tmp_path / "zoo", tf_moe_exp, f"{address}/")
        found = find_model("tiny", zoo=address)
        (tmp_path / "zoo" / "tiny.zip").unlink()
        assert find_model("tiny", zoo=address) == found  # from the cache
        server.shutdown()
    assert found.archive.parent == tmp_path / "cache/espnet2_sepx"
    with pytest.raises(UserError, match=r"table\.csv: cannot be fetched .*; check --zoo"):
        find_model("tiny", zoo=address)


def test_a_hugging_face_id(tf_moe_exp, tmp_path, monkeypatch):
    import huggingface_hub

    folder = tmp_path / "snapshot"
    with zipfile.ZipFile(pack(tf_moe_exp, tmp_path / "model.zip")) as archive:
        archive.extractall(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo: str(folder))
    assert find_model("user/tiny").weights == str(folder / "e/m.pth")

    def fail(repo):
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"nor to be had from Hugging Face \(no network\)"):
        find_model("user/tiny")
    with pytest.raises(UserError, match="--model a b: there is no such path"):
        find_model("a b")


def test_nothing_of_a_checkpoint_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    exp = make_experiment(tmp_path / "exp", SKIM)
    with open(exp / "valid.si_snr_loss.best.pth", "wb") as stream:
        pickle.dump({"encoder.conv1d.weight": Evil()}, stream)
    with pytest.raises(UserError, match="holds more than the tensors of a model; do not use"):
        load_network(find_model(str(exp)))
    (exp / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match=r"config\.yaml: is not plain YAML"):
        find_model(str(exp))
    assert not (tmp_path / "executed").exists()


def test_parameters_of_losses_are_left_alone_and_training_checkpoints_read(tmp_path):
    exp = make_experiment(tmp_path, SKIM)
    path = exp / "valid.si_snr_loss.best.pth"
    state = torch.load(path, weights_only=True)
    torch.save({"model": {**state, "loss_wrappers.0.w": torch.zeros(1)}, "epoch": 3}, path)
    assert same_parameters(load_network(find_model(str(exp))), build_from(state, SKIM))
    del state["encoder.conv1d.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"does not fit .*encoder\.conv1d\.weight"):
        load_network(find_model(str(exp)))


def build_from(state, config):
    network = build_network(config, "test")
    network.load_state_dict(state)
    return network


def test_wrong_configurations_are_told(tmp_path):
    conf = {**TF_MOE["separator_conf"], "num_blocks": 0}
    with pytest.raises(UserError, match="cannot be built: num_blocks must be at least 1, got 0"):
        build_network({**TF_MOE, "separator_conf": conf}, "config")
    with pytest.raises(UserError, match=r"cannot be built: .*unexpected keyword argument 'blocks'"):
        build_network({**TF_MOE, "separator_conf": {"blocks": 1}}, "config")
    with pytest.raises(UserError, match=r"no config\.yaml in it; give the experiment folder"):
        find_model(str(tmp_path))


def test_our_list_of_espnets_classes_is_espnets(espnet_task):
    from espnet2.tasks import enh

    for part, ours in ESPNET.items():
        theirs = {
            name: f"{cls.__module__}:{cls.__qualname__}"
            for name, cls in getattr(enh, f"{part}_choices").classes.items()
            if cls.__module__.startswith("espnet2.")
        }
        theirs.pop("tcn_nomask", None)  # estimates no signals
        assert ours == theirs


def test_a_class_that_others_registered_is_built_by_espnets_task(espnet_task, monkeypatch):
    from espnet2.enh.separator.skim_separator import SkiMSeparator
    from espnet2.tasks import enh

    class Theirs(SkiMSeparator):
        pass

    monkeypatch.setitem(enh.separator_choices.classes, "theirs", Theirs)
    model = build_network({**SKIM, "separator": "theirs"}, "config")
    assert type(model.separator) is Theirs


def test_building_and_separating_needs_no_task(tf_moe_exp):
    code = (
        "import sys, numpy, espnet2_sepx\n"
        f"y = espnet2_sepx.separate(numpy.ones(4000), {str(tf_moe_exp)!r}, fs=8000)\n"
        "assert y.shape == (2, 4000)\n"
        "heavy = {'espnet2.tasks.enh', 'scipy.signal', 'torchaudio'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


def test_the_cache_is_in_the_users_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert find._cache_dir() == Path("/home/me/.cache/espnet2_sepx")
