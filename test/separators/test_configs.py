"""Every training configuration builds; its parameters are those of the paper's row.

``test/golden/models.json`` holds the integers, so a change shows in review. After a wanted change:
``UPDATE_GOLDEN=1 pytest test/separators/test_configs.py``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "test" / "golden" / "models.json"
CONFIGS = sorted(ROOT.glob("egs2/**/conf/train_*.yaml"))
PAPER = ROOT / "egs2" / "libri2mix" / "tf_moe" / "conf"


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def build(espnet_task):
    def build(path: Path):
        parser = espnet_task.get_parser()  # a configuration becomes its parser's defaults
        args = parser.parse_args(["--config", str(path), "--output_dir", "unused"])
        return espnet_task.build_model(args)

    return build


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_builds_with_the_golden_number_of_parameters(path, build) -> None:
    parameters = sum(p.numel() for p in build(path).parameters())
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        golden[name(path)] = {"parameters": parameters}
        GOLDEN.write_text(json.dumps(golden, indent=2, sort_keys=True) + "\n")
    elif name(path) not in golden:
        pytest.fail(f"{name(path)} has {parameters} parameters: add it (see the top of this file)")
    assert parameters == golden[name(path)]["parameters"]


def test_no_golden_entry_without_its_configuration() -> None:
    assert sorted(json.loads(GOLDEN.read_text())) == [name(path) for path in CONFIGS]


@pytest.mark.parametrize(
    ("row", "parameters"),
    [
        ("bsrnn", 2_411_632),
        ("tf_conformer", 2_348_152),
        ("tf_moe_e3", 2_751_352),
        ("tf_moe_e6", 3_355_000),
        ("tf_moe", 4_562_296),
        ("tf_moe_e24", 6_976_888),
        ("tf_conformer_wo_t_conformer", 2_106_500),
        ("tf_conformer_wo_f_conformer", 2_106_500),
        ("tf_moe_e6_wo_t_moe", 2_851_576),
        ("tf_moe_e6_wo_f_moe", 2_851_576),
        ("tf_moe_e6_wo_t_conformer", 2_549_660),
        ("tf_moe_e6_wo_f_conformer", 2_549_660),
        ("tf_moe_e6_wo_t_conformer_n32", 2_807_896),
        ("tf_moe_e6_wo_f_conformer_n32", 2_807_896),
    ],
)
def test_rows_of_the_paper(row, parameters) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden[name(PAPER / f"train_{row}.yaml")]["parameters"] == parameters


def test_rows_of_the_paper_differ_in_the_separator_and_its_loss_only() -> None:
    rows = {path.stem: yaml.safe_load(path.read_text()) for path in PAPER.glob("train_*.yaml")}
    del rows["train_tf_moe_8k"]  # no row of the paper
    assert len(rows) == 15
    reference = rows["train_tf_moe"]
    own = {"separator", "separator_conf", "criterions", "model_conf"}
    for stem, row in rows.items():
        for key in (set(row) | set(reference)) - own:
            assert row[key] == reference[key], f"{stem}: {key}"
        has_experts = "moe" in (row["separator_conf"].get(f"{axis}_module") for axis in "tf")
        assert row["criterions"] == reference["criterions"][: 1 + has_experts], stem


def test_golden_model_trains_and_restores_through_espnet(tmp_path, espnet_task) -> None:
    """Names in a saved configuration rebuild separator and losses (``build_model_from_file``)."""
    import torch

    tiny = yaml.safe_load((PAPER / "train_tf_moe.yaml").read_text())
    for part in ("encoder_conf", "decoder_conf"):
        tiny[part].update(n_fft=64, win_length=64, hop_length=32)
    tiny["separator_conf"].update(num_channels=8, num_blocks=1, num_bands=6, num_experts=3)
    (tmp_path / "in.yaml").write_text(yaml.safe_dump(tiny))
    parser = espnet_task.get_parser()
    args = parser.parse_args(["--config", str(tmp_path / "in.yaml"), "--output_dir", "unused"])
    model = espnet_task.build_model(args)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    loaded, _ = espnet_task.build_model_from_file(
        str(tmp_path / "config.yaml"), str(tmp_path / "model.pth"), "cpu"
    )
    signals = {f"speech_ref{n}": torch.randn(2, 500) for n in (1, 2)}
    data = {
        "speech_mix": sum(signals.values()),
        "speech_mix_lengths": torch.tensor([500, 400]),
        **signals,
    }
    losses = [m.train()(**data)[0].item() for m in (model, loaded)]
    assert losses[0] == losses[1]
