"""Training curves from a checkpoint and from logs."""

from __future__ import annotations

from pathlib import Path

import fake_experiment as fake
import pytest
import torch

from espnet2_sepx.report.curves import parse_log, read_curves, to_curves


def test_log_and_checkpoint_tell_the_same(tmp_path: Path) -> None:
    stats = fake.reporter_stats(3)
    torch.save({"reporter": {"stats": stats, "epoch": 3}}, tmp_path / "checkpoint.pth")
    exact = read_curves(tmp_path)
    logged = to_curves(parse_log(fake.log_text(stats)), tmp_path)
    assert exact is not None
    assert exact.epochs == logged.epochs == [1, 2, 3]
    for phase in ("train", "valid"):
        # durations are not curves: the checkpoint has timedeltas, the log has words
        assert set(exact.values[phase]) == set(logged.values[phase])
        for key, values in exact.values[phase].items():
            assert logged.values[phase][key] == pytest.approx(values, abs=6e-4, rel=1e-3)


def test_resumed_training_has_several_logs(tmp_path: Path) -> None:
    stats = fake.reporter_stats(4)
    (tmp_path / "train.1.log").write_text(fake.log_text({1: stats[1], 2: stats[1]}))
    (tmp_path / "train.log").write_text(fake.log_text({2: stats[2], 3: stats[3]}))
    curves = read_curves(tmp_path)
    assert curves is not None
    assert curves.epochs == [1, 2, 3]
    assert curves.get("valid", "loss")[1] == pytest.approx(stats[2]["valid"]["loss"], abs=6e-4)


def test_unreadable_checkpoint_falls_back_to_the_log(tmp_path: Path) -> None:
    torch.save({"reporter": {"stats": {1: Path("code")}}}, tmp_path / "checkpoint.pth")
    assert read_curves(tmp_path) is None
    (tmp_path / "train.log").write_text(fake.log_text(fake.reporter_stats(1)))
    curves = read_curves(tmp_path)
    assert curves is not None
    assert curves.source.name == "train.log"


def test_values_that_are_missing_or_not_finite() -> None:
    text = "1epoch results: [train] loss=nan, lr=1.000e-03\n2epoch results: [train] loss=-1.5e+03"
    curves = to_curves(parse_log(text), Path("log"))
    assert curves.get("train", "loss") == [None, -1500.0]
    assert curves.get("train", "lr") == [0.001, None]
    assert curves.get("valid", "loss") == []
    assert curves.best("train", "loss") == (2, -1500.0)
    assert curves.best("valid", "loss") is None
