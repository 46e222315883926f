"""The registry behind `make bench`, the table of published figures, and tables of speed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet2_sepx.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import bench_common  # noqa: E402
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


@pytest.fixture
def report(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_common, "STORE", tmp_path / "speed.json")
    monkeypatch.setattr(sys, "argv", ["tools/bench_x.py"])
    return bench_common.Report(bench_common.argument_parser("", 3).parse_args(["--keep"]))


def test_variants_take_turns_after_a_round_of_warming_up():
    order = []
    variants = {name: lambda name=name: order.append(name) for name in "ab"}
    times = bench_common.measure(variants, 3)
    assert "".join(order) == "ab" * 4
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_a_kept_table_is_printed_and_becomes_markdown(report, capsys):
    report.table("one", {"time, ms": ".1f", "ratio": ".2f"}, {"a": [10.04, 1], "b": [5, None]})
    report.times("two", {"a": [0.002, 0.004, 0.003], "b": [0.006] * 3}, "a", note="Noted.")
    assert "  a      10.0   1.00\n  b       5.0       \n" in capsys.readouterr().out
    markdown = bench_common.markdown("bench_x")
    assert "### one\n\n| | time, ms | ratio |\n|---|---:|---:|\n| a | 10.0 | 1.00 |" in markdown
    assert "| b | 5.0 |  |\n" in markdown
    assert "| b | 6.0 | 6.0 | 2.000 |\n\nNoted. (" in markdown
    assert markdown.count("medians of 3 rounds.)") == 2
    assert bench_common.value("bench_x", "two", "b", "over a") == pytest.approx(2.0)
    report.table("one", {"time, ms": ".1f"}, {"a": [1.0]})  # instead of the old one
    assert bench_common.value("bench_x", "one", "a", "time, ms") == 1.0
    assert bench_common.value("bench_x", "two", "a", "over a") == 1.0


def test_what_was_not_kept_is_named(report):
    with pytest.raises(UserError, match=r"nothing from bench_x; run tools/bench_x\.py --keep"):
        bench_common.markdown("bench_x")
    report.table("one", {"ratio": ".2f"}, {"a": [1.0]})
    with pytest.raises(UserError, match=r"no 'b' in bench_x, 'one'; run it with --keep"):
        bench_common.value("bench_x", "one", "b", "ratio")


def test_without_the_option_nothing_is_kept(report, monkeypatch):
    report.keep = False
    report.table("one", {"ratio": ".2f"}, {"a": [1.0]})
    assert not bench_common.STORE.exists()


@pytest.mark.slow
def test_a_speed_tool_prints_its_table():
    command = [sys.executable, ROOT / "tools/bench_dsn.py", "--rounds", "1", "--seconds", "0.2"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = (re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines())
    rows = {name: numbers for name, *numbers in lines}
    assert rows["dense, width 1"][2:] == ["1.00", "1.00", "1.00"]
    assert float(rows["width 0.125"][0]) < float(rows["width 0.5"][0])
    assert "share of width 0.5" in result.stdout


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
