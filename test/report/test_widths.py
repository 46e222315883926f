"""A DSN's widths: the pictures, and the page with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fake_experiment as fake
import numpy as np
import pytest
import tiny_dsn
import torch
import yaml

from espnet2_sepx.bin.report import main
from espnet2_sepx.profiling.model import build_model
from espnet2_sepx.report.charts import grouped_bars
from espnet2_sepx.report.collect import Experiment, collect
from espnet2_sepx.report.widths import WidthMeter, runs, step_path, widths_section

POINTS = [
    ("gate", None, 0.6, 6e8, 5.0),
    ("priced gate", 0.3, 0.4, 4e8, 4.5),
    ("priced gate", -0.3, 0.8, 8e8, 5.2),
    ("one width", None, 0.25, 3e8, None),
    ("one width", None, 1.0, 9e8, 5.1),
]
BUDGETS: dict[str, Any] = {
    "levels": tiny_dsn.LEVELS,
    "utterances": 20,
    "points": [
        dict(zip(("kind", "price", "utilization", "macs", "si_snri"), point, strict=True))
        for point in POINTS
    ],
    "segments": {
        "silence": {"frames": 0},
        "single": {"frames": 80, "utilization": 0.4, "share": [0.8, 0.2]},
        "overlap": {"frames": 20, "utilization": 0.85, "share": [0.2, 0.8]},
    },
}


@pytest.fixture
def dsn(experiment: tuple[Path, Path], espnet_task: Any) -> tuple[Path, Path]:
    """The experiment with a DSN in it."""
    exp, data = experiment
    torch.manual_seed(0)
    config = espnet_task.get_default_config() | fake.config() | tiny_dsn.CONFIG
    config |= {"criterions": [{"name": "si_snr", "conf": {}, "wrapper": "pit", "wrapper_conf": {}}]}
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(build_model(config).state_dict(), exp / "valid.si_snr_loss.best.pth")
    (exp / "profile" / "budgets.json").write_text(json.dumps(BUDGETS))
    return exp, data


def write(exp: Path, data: Path) -> tuple[str, Experiment]:
    main(["--exp", str(exp), "--data_dirs", str(data), "--examples", "2", "--fs", str(fake.FS)])
    return (exp / "report.html").read_text(), collect(exp, [data])


def test_step_path() -> None:
    assert step_path(np.array([0.25, 0.25, 1.0, 0.5])) == "M0 0.75H2V0H3V0.5H4"


@pytest.mark.parametrize(
    ("active", "found"), [([0, 1, 1, 0, 1], [(1, 3), (4, 5)]), ([1], [(0, 1)]), ([0, 0], [])]
)
def test_runs(active: list[int], found: list[tuple[int, int]]) -> None:
    assert runs(np.array(active, dtype=bool)) == found


def test_bars_are_as_high_as_their_shares() -> None:
    svg = grouped_bars("name", [("a", [0.25, 0.75]), ("b", [1.0, 0.0])], ["x", "y"], "share")
    heights = [float(h) for h in re.findall(r'class="bar s1"[^>]* height="([\d.]+)"', svg)]
    assert np.array(heights) / heights[2] == pytest.approx([0.25, 0.75, 1.0, 0.0], abs=0.002)
    assert re.findall(r">(x|y|a|b)</text>", svg) == ["x", "y", "x", "y", "a", "b"]


def test_charts() -> None:
    by_utilization, by_work, histogram = widths_section([], BUDGETS)["charts"]
    for chart in (by_utilization, by_work):
        assert len(re.findall("<circle", chart.svg)) == 4  # of one point nothing is known
        assert len(re.findall("<polyline", chart.svg)) == 3
    assert "one: 0.40" in histogram.svg
    assert "nobody" not in histogram.svg  # no frame of it


def test_meter_sees_widths_and_speakers(dsn: tuple[Path, Path]) -> None:
    exp, _ = dsn
    seconds = 2.0
    one, two = fake.voice(110, seconds, 1), fake.voice(200, seconds, 2)
    one[: fake.FS // 2], two[-fake.FS :] = 0.0, 0.0
    meter = WidthMeter(exp / "config.yaml", exp / "valid.si_snr_loss.best.pth")
    track = meter(one + two, [one, two], fake.FS)
    frames = (round(seconds * fake.FS) - 16) // 8 + 1
    assert set(track.utilization_T.tolist()) <= set(tiny_dsn.LEVELS)
    assert track.utilization_T.shape == (frames,)
    assert track.active_JT.shape == (2, frames)
    assert track.frame_s == 0.001
    assert not track.active_JT[0, :400].any()  # less half a segment
    assert not track.active_JT[1, 1100:].any()
    assert track.active_JT.mean(axis=1) == pytest.approx([0.75, 0.5], abs=0.3)


def test_page(dsn: tuple[Path, Path]) -> None:
    page, experiment = write(*dsn)
    section = page[page.index('<section id="widths">') : page.index('<section id="cost">')]
    assert section.count('aria-label="Utilisation of each frame') == 2
    assert section.count('aria-label="Activity of speaker') == 4
    assert section.count('class="chart"') == 3
    assert "Over 20 test mixtures" in section
    assert not experiment.missing


def test_without_budgets_the_rest_is_shown(dsn: tuple[Path, Path]) -> None:
    exp, data = dsn
    (exp / "profile" / "budgets.json").unlink()
    page, experiment = write(exp, data)
    assert page.count('aria-label="Utilisation of each frame') == 2
    assert [part.stage for part in experiment.missing] == [6]


def test_weights_that_do_not_fit_are_named(dsn: tuple[Path, Path]) -> None:
    exp, data = dsn
    weights = exp / "valid.si_snr_loss.best.pth"
    torch.save({name: w.new_zeros(3) for name, w in torch.load(weights).items()}, weights)
    page, _ = write(exp, data)
    assert "widths over time" in page
    assert "quality by utilisation" in page.lower()


def test_a_static_network_has_no_gate_to_show(dsn: tuple[Path, Path]) -> None:
    exp, data = dsn
    config = yaml.safe_load((exp / "config.yaml").read_text())
    config["separator_conf"]["levels"] = [0.5]
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    budgets = {**BUDGETS, "segments": None, "points": BUDGETS["points"][3:]}
    (exp / "profile" / "budgets.json").write_text(json.dumps(budgets))
    page, _ = write(exp, data)
    assert 'aria-label="Utilisation of each frame' not in page
    assert page.count("one checkpoint") == 2


def test_other_systems_have_no_such_section(
    experiment: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from espnet2_sepx.report import build

    monkeypatch.setattr(build, "Router", fake.FakeRouter)
    page, found = write(*experiment)
    assert "#widths" not in page
    assert found.budgets is None
