"""Imported SpeechBrain weights give SpeechBrain's outputs, through stock ESPnet (both optional)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from espnet2_sepx.bin import import_checkpoint
from espnet2_sepx.errors import UserError
from espnet2_sepx.importers import find_source

RE_YAML = """
sample_rate: 8000
num_spks: 2
N_encoder_out: 32
__set_seed: !apply:torch.manual_seed [1234]
intra: &intra !new:speechbrain.lobes.models.resepformer.SBTransformerBlock_wnormandskip
    num_layers: 2
    d_model: !ref <N_encoder_out>
    nhead: 4
    d_ffn: 48
    dropout: 0
    use_positional_encoding: true
    norm_before: true
    causal: {causal}
    norm_type: {norm}
memory: *intra
MaskNet: !new:speechbrain.lobes.models.resepformer.ResourceEfficientSeparator
    input_dim: !ref <N_encoder_out>
    num_spk: !ref <num_spks>
    causal: {causal}
    segment_size: 15
    layer: 2
    mem_type: av
    seg_model: !ref <intra>
    mem_model: *intra
Decoder: !new:speechbrain.lobes.models.dual_path.Decoder
    stride: 8
"""
DUAL_YAML = """
sample_rate: 8000
intra: !new:speechbrain.lobes.models.dual_path.SBTransformerBlock
    nhead: 4
    use_positional_encoding: true
    norm_before: true
MaskNet: !new:speechbrain.lobes.models.dual_path.Dual_Path_Model
    num_spks: 2
    K: 10
    intra_model: !ref <intra>
    inter_model: !ref <intra>
    norm: ln
    linear_layer_after_inter_intra: false
    skip_around_intra: true
"""


def scrambled(module: torch.nn.Module) -> torch.nn.Module:
    """Norms and biases away from their trivial initial values."""
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2 or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    return module.eval()


class SpeechBrain:
    """A small random model of SpeechBrain's, saved as its recipes do."""

    def __init__(self, kind: str, folder: Path) -> None:
        pytest.importorskip("speechbrain", reason="optional: pip install speechbrain")
        from speechbrain.lobes.models import dual_path, resepformer

        causal, norm = kind != "gln", "cln" if kind == "cln" else "gln"
        self.encoder = dual_path.Encoder(16, 32)
        self.decoder = dual_path.Decoder(32, 1, 16, stride=8, bias=False)
        if kind == "sepformer":
            block = dual_path.SBTransformerBlock(
                2, 32, 4, 48, dropout=0.0, use_positional_encoding=True, norm_before=True
            )
            self.masknet = dual_path.Dual_Path_Model(
                32, 32, block, block, 2, "ln", 10, 2, True, False
            )
            text = DUAL_YAML
        else:
            block = resepformer.SBTransformerBlock_wnormandskip(
                2, 32, 4, 48, dropout=0.0, use_positional_encoding=True, norm_before=True,
                causal=causal, norm_type=norm,
            )  # fmt: skip
            self.masknet = resepformer.ResourceEfficientSeparator(
                32, causal, 2, layer=2, segment_size=15, mem_type="av",
                seg_model=block, mem_model=block,
            )  # fmt: skip
            text = RE_YAML.format(causal=str(causal).lower(), norm=norm)
        folder.mkdir()
        for part in ("encoder", "masknet", "decoder"):
            torch.save(scrambled(getattr(self, part)).state_dict(), folder / f"{part}.ckpt")
        (folder / "hyperparams.yaml").write_text(text)

    @torch.no_grad()
    def separate(self, mixture: torch.Tensor) -> torch.Tensor:
        """(1, L) to (2, L), as SpeechBrain's recipes do it."""
        features = self.encoder(mixture)
        waves = [self.decoder(features * mask) for mask in self.masknet(features)]
        missing = mixture.shape[1] - waves[0].shape[1]
        return torch.cat([torch.nn.functional.pad(wave, (0, missing)) for wave in waves])


def recordings(shared_data_folder: Path | None) -> list[torch.Tensor]:
    """Noise of odd lengths, and real speech if there is any."""
    found = [0.1 * torch.randn(1, samples) for samples in (16, 1207, 3000, 8001)]
    if shared_data_folder is not None:
        import soundfile

        for path in sorted(shared_data_folder.rglob("*.flac"))[:2]:
            found.append(torch.from_numpy(soundfile.read(path, dtype="float32")[0][None, :20011]))
    return found


@pytest.fixture(scope="module")
def separate_speech(espnet_task):
    from espnet2.bin.enh_inference import SeparateSpeech

    return SeparateSpeech


@pytest.mark.parametrize("kind", ["gln", "cln", "masked gln", "sepformer"])
def test_outputs_are_speechbrains(kind, tmp_path, separate_speech) -> None:
    theirs = SpeechBrain(kind, tmp_path / "sb")
    out = tmp_path / "exp"
    import_checkpoint.main(["--checkpoint", str(tmp_path / "sb"), "--output_dir", str(out)])
    separate = separate_speech(str(out / "config.yaml"), str(out / "imported.pth"))
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    for mixture in recordings(shared if shared.is_dir() else None):
        expected = theirs.separate(mixture)
        for ours, wave in zip(separate(mixture.numpy(), fs=8000), expected, strict=True):
            difference = abs(ours[0] - wave.numpy()).max()
            assert difference <= 1e-5 * max(1.0, wave.abs().max().item())


def state_of(kind: str, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path / "sb"
    SpeechBrain(kind, folder)
    return folder, torch.load(folder / "masknet.ckpt", weights_only=True)


def test_missing_and_superfluous_weights_are_named(tmp_path, espnet_task) -> None:
    folder, state = state_of("gln", tmp_path)
    del state["model.output_fc.0.weight"]
    torch.save({**state, "model.extra": torch.zeros(2)}, folder / "masknet.ckpt")
    with pytest.raises(UserError, match=r"prelu\.weight.*model\.extra"):
        import_checkpoint.main(["--checkpoint", str(folder), "--output_dir", str(tmp_path / "exp")])
    assert not (tmp_path / "exp").exists()


def test_options_without_hyperparameters(tmp_path, espnet_task, capsys) -> None:
    folder, _ = state_of("cln", tmp_path)
    (folder / "hyperparams.yaml").unlink()
    out = tmp_path / "exp"
    options = ["num_heads=4", "chunk_size=15", "causal=chunk"]
    arguments = ["--checkpoint", str(folder), "--output_dir", str(out)]
    import_checkpoint.main(arguments + [f"--separator_conf={option}" for option in options])
    assert "no hyperparams.yaml" in capsys.readouterr().err
    config = yaml.safe_load((out / "config.yaml").read_text())
    conf = config["separator_conf"]
    assert (conf["num_heads"], conf["chunk_size"], conf["causal"]) == (4, 15, "chunk")
    assert config["encoder"] == "conv_chunk"
    assert config["encoder_conf"]["chunk_size"] == 15
    with pytest.raises(UserError, match="exists"):
        import_checkpoint.main(arguments)


def test_another_network_is_refused(tmp_path) -> None:
    folder, _ = state_of("gln", tmp_path)
    text = (folder / "hyperparams.yaml").read_text()
    (folder / "hyperparams.yaml").write_text(
        text.replace("norm_before: true", "norm_before: false")
    )
    with pytest.raises(UserError, match="norm_before must be True"):
        find_source(folder, None).load(folder, {})
    torch.save({"other": torch.zeros(1)}, folder / "masknet.ckpt")
    with pytest.raises(UserError, match="expected the weights of a RE-SepFormer"):
        find_source(folder, "speechbrain").load(folder, {})


def test_only_weights_are_unpickled(tmp_path) -> None:
    for part in ("encoder", "decoder"):
        torch.save({}, tmp_path / f"{part}.ckpt")
    torch.save({"code": Path("x")}, tmp_path / "masknet.ckpt")
    with pytest.raises(UserError, match="not a file of weights"):
        find_source(tmp_path, None).load(tmp_path, {})


def test_user_errors(tmp_path) -> None:
    def message(*arguments: str) -> str:
        command = [sys.executable, "-m", "espnet2_sepx.bin.import_checkpoint", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        return result.stderr

    out = ["--output_dir", str(tmp_path / "exp")]
    assert "no such folder or zip" in message("--checkpoint", "nowhere", *out)
    assert "no checkpoint of a known kind" in message("--checkpoint", str(tmp_path), *out)
    wrong = message("--checkpoint", str(tmp_path), *out, "--separator_conf", "x")
    assert "name=value" in wrong


def test_download_goes_through_the_hub(tmp_path, monkeypatch, espnet_task) -> None:
    folder, _ = state_of("gln", tmp_path)
    asked = {}

    def snapshot_download(repo, **options):
        asked.update(repo=repo, **options)
        return str(shutil.copytree(folder, tmp_path / "cache"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    out = tmp_path / "exp"
    import_checkpoint.main(["--checkpoint", "some/model", "--output_dir", str(out)])
    assert asked["repo"] == "some/model"
    assert "masknet.ckpt" in asked["allow_patterns"]
    assert (out / "imported.pth").is_file()
