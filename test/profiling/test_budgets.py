"""One checkpoint under several budgets."""

import json

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny_dsn import CONFIG, LEVELS

from espnet2_sepx.bin import measure_budgets as cli
from espnet2_sepx.errors import UserError
from espnet2_sepx.losses.segments import CLASSES
from espnet2_sepx.profiling.budgets import measure_budgets, price_of, read_utterances
from espnet2_sepx.profiling.macs import count_macs
from espnet2_sepx.profiling.model import build_model, separate

FS = 8000


@pytest.fixture
def data(tmp_path):
    """Silence, then speaker 1, then both; two utterances."""
    rng = np.random.default_rng(0)
    lines = {name: [] for name in ("wav", "spk1", "spk2")}
    for utt in ("a", "b"):
        one, two = 0.1 * rng.normal(size=(2, 6000))
        one[:2000], two[:4000] = 0.0, 0.0
        for name, signal in {"wav": one + two, "spk1": one, "spk2": two}.items():
            path = tmp_path / f"{utt}_{name}.wav"
            soundfile.write(path, signal, FS)
            lines[name].append(f"{utt} {path}\n")
    for name, rows in lines.items():
        (tmp_path / f"{name}.scp").write_text("".join(rows))
    return tmp_path


@pytest.fixture
def model():
    """Its gate has opinions."""
    torch.manual_seed(0)
    model = build_model(CONFIG)
    model.separator.gate.classifier.weight.data *= 10.0
    return model


def test_points_and_segments(model, data):
    found = measure_budgets(model, read_utterances(data, FS, None), FS, [0.4, 0.6])
    kinds = [point["kind"] for point in found["points"]]
    assert kinds == ["gate", "priced gate", "priced gate"] + ["one width"] * 4
    used = [point["utilization"] for point in found["points"]]
    assert used[1:3] == pytest.approx([0.4, 0.6], abs=0.05)
    assert used[3:] == pytest.approx([0.25, 0.4, 0.6, 1.0])
    macs = [point["macs"] for point in found["points"]]
    assert macs[3:] == sorted(macs[3:])
    mixture = read_utterances(data, FS, 1)[0].mixture
    model.separator.external_utilization = 1.0
    counted = count_macs(model, lambda: separate(model, mixture, FS)).total.all
    gate = macs[-1] - counted * FS / mixture.shape[1]  # `fixed` was counted with the gate running
    assert 0 < gate < 0.3 * macs[-1]
    segments = found["segments"]
    assert list(segments) == list(CLASSES)
    for entry in segments.values():
        assert sum(entry["share"]) == pytest.approx(1.0)
        mean = np.dot(entry["share"], LEVELS)
        assert entry["utilization"] == pytest.approx(mean, abs=1e-6)
    frames = sum(entry["frames"] for entry in segments.values())
    whole = sum(entry["frames"] * entry["utilization"] for entry in segments.values()) / frames
    assert whole == pytest.approx(used[0])
    for name in CLASSES:  # a third each, less half a segment's reach
        assert segments[name]["frames"] / frames == pytest.approx(1 / 3, abs=0.1)


def test_the_model_is_left_as_it_was(model, data):
    model.separator.compute_price = 0.5
    measure_budgets(model, read_utterances(data, FS, 1), FS, [0.5])
    assert model.separator.compute_price == 0.5
    assert model.separator.external_utilization is None


def test_a_static_network_has_one_point_per_width(data):
    conf = {**CONFIG, "separator_conf": {**CONFIG["separator_conf"], "levels": [0.5]}}
    found = measure_budgets(build_model(conf), read_utterances(data, FS, 1), FS, [0.25, 0.75])
    assert [point["utilization"] for point in found["points"]] == [0.25, 0.5]
    assert found["segments"] is None


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.9])
def test_price_of_a_budget(budget):
    logits = torch.randn(4000, 3)
    widths = torch.tensor([0.125, 0.5, 1.0])
    price = price_of(logits, widths.tolist(), budget)
    used = widths[(logits - price * widths).argmax(-1)].mean().item()
    assert used == pytest.approx(budget, abs=2e-3)


def test_command_line(model, data, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    options = ["--config", str(tmp_path / "config.yaml"), "--model_file"]
    options += [str(tmp_path / "model.pth"), "--data_dir", str(data), "--fs", str(FS)]
    options += ["--out", str(tmp_path / "profile" / "budgets.json"), "--budgets", "0.5"]
    cli.main(options)
    found = json.loads((tmp_path / "profile" / "budgets.json").read_text())
    assert len(found["points"]) == 5
    assert capsys.readouterr().out.count("one width") == 3
    other = {**CONFIG, "separator": "skim", "separator_conf": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(UserError, match="has no budget"):
        cli.main(options)
    with pytest.raises(UserError, match="--budgets"):
        cli.main([*options, "--budgets", "2"])
