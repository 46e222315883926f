"""Published SPMamba releases: folder or zip of conf.yml and best_model.pth."""

from __future__ import annotations

import zipfile
from pathlib import Path

import published_spmamba
import pytest
import torch
import yaml

from espnet2_sepx.bin import import_checkpoint
from espnet2_sepx.errors import UserError
from espnet2_sepx.separators.spmamba import SPMambaSeparator

CONSTRUCTOR = {  # configs/spmamba-*.yml of the published repository, smaller
    "input_dim": 64,
    "n_srcs": 2,
    "n_fft": 64,
    "stride": 16,
    "window": "hann",
    "n_imics": 1,
    "n_layers": 1,
    "lstm_hidden_units": 256,
    "attn_n_head": 4,
    "attn_approx_qk_dim": 64,
    "emb_dim": 4,
    "emb_ks": 4,
    "emb_hs": 1,
    "activation": "prelu",
    "eps": 1.0e-5,
    "use_builtin_complex": False,
}


@pytest.fixture
def release(tmp_path):
    """A folder as the authors' releases have it."""

    def make(stated=CONSTRUCTOR, wrap=None) -> Path:
        torch.manual_seed(1)
        model = SPMambaSeparator(
            33, n_layers=1, emb_dim=4, emb_ks=4, expand=4, attn_approx_qk_dim=64
        )
        state = model.state_dict()
        content = {
            "model_name": "TFGridNetMamba",
            "state_dict": state,
            "model_args": {"n_sample_rate": 2},
            "infos": {"software_versions": {"torch_version": "2.1.0", "python_version": "3.10"}},
        }
        folder = tmp_path / "release"
        folder.mkdir()
        torch.save(content if wrap is None else wrap(state), folder / "best_model.pth")
        if stated is not None:
            conf = {
                "audionet": {"audionet_name": "SPMamba", "audionet_config": stated},
                "datamodule": {"data_config": {"sample_rate": 8000, "n_src": 2}},
                "main_args": {"help": None},
            }
            (folder / "conf.yml").write_text(yaml.safe_dump(conf))
        return folder

    return make


def run(source: Path, output: Path, *options: str) -> None:
    import_checkpoint.main(["--checkpoint", str(source), "--output_dir", str(output), *options])


def check_separates_like_the_published_code(exp: Path, release: Path) -> None:
    from espnet2.bin.enh_inference import SeparateSpeech

    separate = SeparateSpeech(str(exp / "config.yaml"), str(exp / "imported.pth"))
    wave = 0.05 * torch.randn(1000)
    found = torch.tensor(separate(wave[None].numpy(), fs=8000))[:, 0]
    state = torch.load(release / "best_model.pth", weights_only=True)["state_dict"]
    exact = {name: tensor.double() for name, tensor in state.items()}
    expected = published_spmamba.separate(exact, wave.double(), 64, 16, window=4)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert yaml.safe_load((exp / "config.yaml").read_text())["sample_rate"] == 8000


def test_folder(release, tmp_path) -> None:
    folder = release()
    run(folder, tmp_path / "exp")
    check_separates_like_the_published_code(tmp_path / "exp", folder)


def test_zip_with_a_folder_inside(release, tmp_path) -> None:
    folder = release()
    with zipfile.ZipFile(tmp_path / "SPMamba-LibriMix.zip", "w") as archive:
        archive.writestr("Experiments/SPMamba/notes.txt", "x")
        for file in folder.iterdir():
            archive.write(file, f"Experiments/SPMamba/{file.name}")
    run(tmp_path / "SPMamba-LibriMix.zip", tmp_path / "exp")
    check_separates_like_the_published_code(tmp_path / "exp", folder)


def test_zip_writes_nowhere_else(release, tmp_path) -> None:
    folder = release()
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.write(folder / "conf.yml", "../../conf.yml")
        archive.write(folder / "best_model.pth", "/best_model.pth")
        archive.writestr("../../../outside.txt", "x")
    before = sorted(tmp_path.rglob("*"))
    run(evil, tmp_path / "exp")
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == sorted(
        [tmp_path / "exp", tmp_path / "exp/config.yaml", tmp_path / "exp/imported.pth"]
    )


def test_zip_with_two_models_is_refused(release, tmp_path) -> None:
    folder = release()
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for part in ("a", "b"):
            archive.write(folder / "best_model.pth", f"{part}/best_model.pth")
    with pytest.raises(UserError, match=r"a/best_model\.pth, b/best_model\.pth"):
        run(tmp_path / "two.zip", tmp_path / "exp")


def test_lightning_checkpoint_and_missing_conf(release, tmp_path, capsys) -> None:
    def lightning(state):
        return {"epoch": 3, "state_dict": {f"audio_model.{k}": v for k, v in state.items()}}

    run(release(None, lightning), tmp_path / "exp")
    assert "note: no conf.yml" in capsys.readouterr().err
    config = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())
    assert config["encoder_conf"]["hop_length"] == 16
    assert config["model_conf"] == {"normalize_variance": True}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_fft": 128}, "n_fft must be 64"),
        ({"emb_dim": 8}, "emb_dim must be 4"),
        ({"n_imics": 2}, "n_imics must be 1"),
        ({"window": "sqrthann"}, "window must be hann"),
    ],
)
def test_a_conf_of_another_network_is_refused(release, tmp_path, change, words) -> None:
    with pytest.raises(UserError, match=words):
        run(release({**CONSTRUCTOR, **change}), tmp_path / "exp")
    assert not (tmp_path / "exp").exists()


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


def test_code_in_a_checkpoint_does_not_run(release, tmp_path, capsys) -> None:
    folder = release(wrap=lambda state: {"state_dict": state, "infos": Evil()})
    with pytest.raises(UserError, match="not a file of weights"):
        run(folder, tmp_path / "exp")
    assert "code was run" not in capsys.readouterr().out
