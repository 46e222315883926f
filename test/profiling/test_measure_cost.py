"""The command: a whole measurement, its files, the comparison, and its complaints."""

import json
import math
import re
import subprocess
import sys

import pytest
import yaml
from profiling_configs import conv_config, small_tcn, small_tf_moe

import espnet2_sepx.profiling.cost as cost_module
from espnet2_sepx.bin import measure_cost
from espnet2_sepx.errors import UserError
from espnet2_sepx.profiling import worker
from espnet2_sepx.profiling.cost import Request, config_name, read_cost
from espnet2_sepx.profiling.curve import run_seconds
from espnet2_sepx.profiling.table import compare_markdown, cost_markdown


def command(*options):
    return subprocess.run(
        [sys.executable, "-m", "espnet2_sepx.bin.measure_cost", *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A small TF-MoE, measured as a user would."""
    folder = tmp_path_factory.mktemp("tf_moe_small")
    (folder / "config.yaml").write_text(yaml.safe_dump(small_tf_moe()), encoding="utf-8")
    out = folder / "profile" / "cost.json"
    result = command(
        "--config", folder / "config.yaml", "--seconds", 0.5, "--repeats", 2, "--out", out
    )
    assert result.returncode == 0, result.stderr
    return result, out


def test_a_whole_measurement(measured):
    result, out = measured
    cost = json.loads(out.read_text(encoding="utf-8"))
    assert result.stdout == out.with_suffix(".md").read_text(encoding="utf-8")
    assert sorted(file.name for file in out.parent.iterdir()) == ["cost.json", "cost.md"]
    assert cost["config"] == out.parent.parent.name
    assert (cost["schema"], cost["separator"], cost["fs"], cost["seconds"]) == (
        2,
        "tf_moe",
        8000,
        0.5,
    )
    assert cost["input"] == "noise"
    documented = set(re.findall(r"^``(\w+)``", cost_module.__doc__, re.MULTILINE))
    assert set(cost) == documented | {"seconds"}

    parameters, macs = cost["parameters"], cost["macs_per_second"]
    assert parameters["total"] == parameters["trainable"] == sum(parameters["by_part"].values())
    for column in ("weights", "all", "elementwise", "ptflops", "thop", "torchprofile"):
        assert macs[column] > 0
        assert sum(row[column] for row in macs["by_part"].values()) == pytest.approx(macs[column])
    assert 0 < macs["weights"] < macs["all"] == macs["executed"] < macs["theoretical"]
    assert macs["uncounted"] == macs["problems"] == {}
    assert cost["conditional"] is cost["streaming"] is None
    assert cost["other_runs"] == cost["curves"] == []
    assert cost["rtf"]["threads"] == 1
    assert 0 < cost["rtf"]["min"] <= cost["rtf"]["median"] <= cost["rtf"]["max"]
    assert 0 < cost["memory_mb"]["baseline"] <= cost["memory_mb"]["peak"]
    assert cost["latency"] == {"algorithmic_samples": None, "algorithmic_ms": None}
    assert set(cost["environment"]) >= {"processor", "torch", "numpy", "python", "espnet"}


def test_table_of_one_system(measured):
    text = cost_markdown(read_cost(measured[1]))
    assert "| parameters | " in text
    assert "&emsp;&emsp;&emsp;attention |" in text
    assert "Not counted" not in text
    assert "| look-ahead of the output | the whole input |" in text
    assert "- `thop` " in text
    cost = read_cost(measured[1])
    cost["macs_per_second"]["uncounted"] = {"mamba.selective_scan": 12}
    cost["latency"] = {"algorithmic_samples": 15, "algorithmic_ms": 1.875}
    assert "| look-ahead of the output | 1.875 ms |" in cost_markdown(cost)
    assert "**Not counted**, for want of a rule: `mamba.selective_scan` x 12." in cost_markdown(
        cost
    )


def test_comparison_refuses_unequal_conditions(measured, tmp_path):
    cost = read_cost(measured[1])
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**cost, "config": "other", "seconds": 1.0}), encoding="utf-8")
    with pytest.raises(UserError, match=r"input length differs .*other 1.0.*--force true"):
        compare_markdown([cost, read_cost(other)])
    forced = command("--compare", measured[1], other, "--force", "true")
    assert forced.returncode == 0
    rows = forced.stdout.splitlines()
    assert rows[0].endswith("input length |")
    assert "MAC/s ptflops" in rows[0]
    assert [row.split(" | ")[0] for row in rows[2:4]] == [f"| {cost['config']}", "| other"]

    table = compare_markdown([cost, {**cost, "config": "twin"}])
    assert "sampling rate 8000, input length 0.5" in table
    with pytest.raises(UserError, match="version of the MAC rules differs"):
        compare_markdown([cost, {**cost, "rules": "0"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "no.yaml", "--out", "x.json"], "no.yaml: no such file; check --config"),
        (["--config", "c.yaml"], "--out: expected a .json file to write, got None"),
        (
            ["--config", "c.yaml", "--out", "x.md"],
            "--out: expected a .json file to write, got x.md",
        ),
        (["--config", "c.yaml", "--out", "c.yaml/x.json"], "cannot write c.yaml/x.md"),
        (
            ["--config", "c.yaml", "--out", "x.json", "--seconds", "-1"],
            "--seconds: must be above 0",
        ),
        (
            ["--config", "c.yaml", "--out", "x.json", "--curve", "1", "-2"],
            "--curve: must be above 0, got -2",
        ),
        (
            ["--config", "c.yaml", "--out", "x.json", "--threads", "1", "0"],
            "--threads: must be above 0, got 0",
        ),
        (["--config", "c.yaml", "--out", "x.json", "--wav", "a.wav"], "a.wav: no such file"),
        (["--compare", "no.json"], "no.json: cannot read"),
        (["--compare", "c.yaml"], "c.yaml: not JSON"),
        (["--compare", "old.json"], "old.json: not a cost.json of schema 2"),
    ],
)
def test_complaints(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("separator: tcn\n", encoding="utf-8")
    (tmp_path / "old.json").write_text('{"schema": 0}', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["measure_cost", *options])
    with pytest.raises(UserError, match=message):
        measure_cost.main()
    assert not (tmp_path / "x.json").exists()


@pytest.mark.slow
def test_curves_threads_streaming_and_plots(tmp_path):
    """One run with all that is optional, of a model that streams."""
    pytest.importorskip("matplotlib")
    config, out = tmp_path / "skim.yaml", tmp_path / "cost.json"
    skim = conv_config("skim", unit=8, layer=2, segment_size=20, causal=True)
    config.write_text(yaml.safe_dump(skim), encoding="utf-8")
    options = ["--fs", 8000, "--seconds", 0.5, "--repeats", 2, "--threads", 1, 2]
    curve = ["--curve", 0.5, 1, "--plots", "true", "--device", "cpu"]
    result = command("--config", config, "--out", out, *options, *curve)
    assert result.returncode == 0, result.stderr
    cost = read_cost(out)
    assert [run["rtf"]["threads"] for run in cost["other_runs"]] == [2]
    assert [curve["threads"] for curve in cost["curves"]] == [1, 2]
    for curve in cost["curves"]:
        assert [point["seconds"] for point in curve["points"]] == [0.5, 1.0]
        assert curve["stopped"] is None
        slope, times = curve["slope"], [run_seconds(point) for point in curve["points"]]
        assert slope["time"] == pytest.approx(math.log2(times[1] / times[0]))
        assert (slope["from_s"], slope["to_s"]) == (0.5, 1.0)
    assert cost["streaming"]["latency_samples"] == 16
    for name in ("cost_parts.svg", "cost_curves.svg"):
        assert "<svg" in (tmp_path / name).read_text(encoding="utf-8")
    for words in ("streaming, latency | 2 ms", "Growth from 0.5 to 1 s: time n^", "| cpu | 2 |"):
        assert words in result.stdout


def test_a_length_below_one_sample_is_not_the_default():
    assert worker._input(Request("c.yaml", seconds=1e-5), 8000).shape == (1, 0)
    assert worker._input(Request("c.yaml"), 8000).shape == (1, 19200)


def test_an_error_of_the_measuring_process_is_one_line(tmp_path):
    config = tmp_path / "tcn.yaml"
    config.write_text(yaml.safe_dump(small_tcn()), encoding="utf-8")
    out = tmp_path / "cost.json"
    result = command("--config", config, "--out", out)
    assert result.returncode == 2
    assert "error: tcn.yaml: the sampling rate is not stated" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not out.exists()


def test_name_of_a_configuration(tmp_path):
    assert config_name("conf/train_skim.yaml") == "train_skim"
    assert config_name(tmp_path / "exp_a" / "config.yaml") == "exp_a"
