"""A killed training loses nothing: saves are whole, and a resumed run mends files and links."""

import os

import pytest
import torch

trainer = pytest.importorskip("espnet2_sepx.trainer")


def experiment(folder, losses):
    """An ESPnet experiment folder after ``len(losses)`` epochs, with these validation losses."""
    from espnet2.train.reporter import Reporter

    reporter = Reporter()
    for epoch, loss in enumerate(losses, 1):
        reporter.set_epoch(epoch)
        with reporter.observe("valid") as valid:
            valid.register({"loss": torch.tensor(loss)})
            valid.next()
    weights = {"weight": torch.tensor([float(len(losses))])}
    torch.save({"model": weights, "reporter": reporter.state_dict()}, folder / "checkpoint.pth")
    return weights


CRITERION = [("valid", "loss", "min")]


def test_missing_weights_and_links_are_written(tmp_path):
    weights = experiment(tmp_path, [3.0, 1.0])
    trainer.repair_experiment(tmp_path, CRITERION)
    assert torch.load(tmp_path / "2epoch.pth", weights_only=True) == weights
    assert os.readlink(tmp_path / "latest.pth") == "2epoch.pth"
    assert os.readlink(tmp_path / "valid.loss.best.pth") == "2epoch.pth"


def test_the_best_link_follows_the_reporter_not_the_clock(tmp_path):
    (tmp_path / "1epoch.pth").write_bytes(b"best weights")
    (tmp_path / "valid.loss.best.pth").symlink_to("gone.pth")
    experiment(tmp_path, [1.0, 3.0])
    trainer.repair_experiment(tmp_path, CRITERION)
    assert os.readlink(tmp_path / "valid.loss.best.pth") == "1epoch.pth"


def test_repair_is_idempotent_and_needs_a_checkpoint(tmp_path):
    trainer.repair_experiment(tmp_path, CRITERION)
    assert not list(tmp_path.iterdir())
    experiment(tmp_path, [1.0])
    trainer.repair_experiment(tmp_path, CRITERION)
    before = {path.name: path.lstat().st_mtime_ns for path in tmp_path.iterdir()}
    trainer.repair_experiment(tmp_path, CRITERION)
    assert before == {path.name: path.lstat().st_mtime_ns for path in tmp_path.iterdir()}


def test_a_save_that_fails_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pth"
    with trainer.atomic_torch_save():
        torch.save({"step": 1}, path)
        with pytest.raises(Exception, match="pickle"):
            torch.save({"step": 2, "bad": lambda: None}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pth"]
