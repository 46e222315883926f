"""The registry behind `make bench` and the table of published figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet2_sepx.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import published  # noqa: E402

REGISTRY = yaml.safe_load((ROOT / "bench" / "systems.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", REGISTRY["systems"])
def test_an_entry_is_a_configuration_or_a_peer(name):
    entry = REGISTRY["systems"][name]
    assert len({"config", "peer"} & set(entry)) == 1
    if "config" in entry:
        assert (ROOT / entry["config"]).is_file()
    else:
        peers = (ROOT / "tools" / "bench_peers.py").read_text(encoding="utf-8")
        assert f"def {entry['peer']}()" in peers
    for figure in entry.get("published", []):
        assert set(figure) - {"parameters", "remark"} == {"in", "seconds", "macs"}


@pytest.mark.parametrize("group", REGISTRY["groups"], ids=lambda group: group["title"])
def test_a_group_has_known_systems_of_one_rate(group):
    for name in group["systems"]:
        entry = REGISTRY["systems"][name]
        if "config" in entry:
            config = yaml.safe_load((ROOT / entry["config"]).read_text(encoding="utf-8"))
            assert config["preprocessor_conf"]["sample_rate"] == group["fs"], name


def test_a_published_figure_names_the_conventions_within_two_percent():
    counts = {"weights": 99.0, "all": 150.0, "ptflops": 101.9, "thop": None, "torchprofile": 97.0}
    assert list(published.reproduced_by(counts, 100.0)) == ["weights", "ptflops"]
    assert published.reproduced_by(counts, 200.0) == {}


def test_a_figure_that_nothing_reproduces_needs_a_remark(monkeypatch, tmp_path):
    figure = {"in": "a paper", "seconds": 1, "macs": 5e9}
    entry = {"config": "a.yaml", "published": [figure]}
    counts = {"seconds": 1.0, "parameters": 10, **dict.fromkeys(published.COLUMNS, 1e9)}
    stored = tmp_path / "published.json"
    stored.write_text(json.dumps({"rules": "1", "systems": {"A": [counts]}}), encoding="utf-8")
    monkeypatch.setattr(published, "COUNTS", stored)
    monkeypatch.setattr(published, "published", lambda: {"A": entry})
    with pytest.raises(UserError, match=r"'A': no convention gives 5e\+09; add a remark"):
        published.table()
    figure["remark"] = "it counts FLOPs"
    assert "| none: it counts FLOPs |" in published.table()
    figure["seconds"] = 2
    with pytest.raises(UserError, match=r"lacks 'A' at 2 s; run tools/published\.py"):
        published.table()


@pytest.mark.slow
def test_bench_writes_its_table(tmp_path):
    conf = ROOT / "egs2/wsj0_2mix"
    systems = {
        "SkiM": {"config": str(conf / "skim/conf/train_skim.yaml")},
        "causal": {"config": str(conf / "skim/conf/train_skim_causal.yaml")},
    }
    group = {"title": "small", "fs": 8000, "seconds": 0.5, "systems": list(systems)}
    registry = tmp_path / "systems.yaml"
    registry.write_text(yaml.safe_dump({"systems": systems, "groups": [group]}), encoding="utf-8")
    command = [sys.executable, ROOT / "tools" / "bench.py", "--rounds", "2"]
    command += ["--registry", registry, "--out", tmp_path]
    subprocess.run(command, check=True)
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    rows = [
        line.split(" | ") for line in text.splitlines() if line.startswith(("| SkiM", "| caus"))
    ]
    assert [row[1] for row in rows] == ["14,506,753", "5,306,625"]
    assert rows[0][4:6] == ["1.00", "1.00 ... 1.00"]
    assert float(rows[1][4]) < 1
    assert "2 rounds. Machine: " in text
    again = subprocess.run(
        [*command, "--resume", "true"], check=True, capture_output=True, text=True
    )
    assert "kept from before" in again.stdout
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf-8") == text
