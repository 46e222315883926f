"""A tiny experiment with one of ESPnet's own separators, scored, profiled and packed."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 8000


@dataclass(frozen=True)
class Experiment:
    """Paths; ``root`` is the folder that the pack's names are relative to."""

    root: Path
    exp: Path
    pack: Path
    wav: Path

    def repack(self, name: str = "again.zip") -> Path:
        """Pack with ESPnet's command, from ``root``."""
        from espnet2.bin.pack import main

        outpath = self.root / name
        before = os.getcwd()
        os.chdir(self.root)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                main(
                    f"enh --train_config exp/tiny/config.yaml --outpath {outpath} "
                    "--model_file exp/tiny/valid.loss.best.pth --option exp/tiny/RESULTS.md".split()
                )
        finally:
            os.chdir(before)
        return outpath


def summary(name: str = "test", mean: float | None = 5.25) -> dict:
    entry = {"mean": mean, "ci_low": 5.0, "ci_high": 5.5, "count": 9, "missing": 1}
    return {
        "schema": 1,
        "set": name,
        "fs": RATE,
        "count": 10,
        "metrics": {"si_snr": entry, "si_snri": entry},
        "buckets": [],
        "worst": [],
        "conventions": {"si_snr": "means removed"},
    }


COST = {
    "schema": 1,
    "fs": RATE,
    "seconds": 2.4,
    "parameters": {"total": 12345},
    "macs_per_second": {"weights": 1.5e6, "all": 2.5e6, "executed": 2.0e6},
    "rtf": {"median": 0.0123, "threads": 1},
    "memory_mb": {"peak": 321.0},
    "environment": {"processor": "Test CPU"},
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Experiment:
    """Made once; tests that change files take ``experiment``, a copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import yaml
        from espnet2.tasks.enh import EnhancementTask

        config = EnhancementTask.get_default_config()
        config |= {
            "encoder": "conv",
            "encoder_conf": {"channel": 16, "kernel_size": 16, "stride": 8},
            "separator": "rnn",
            "separator_conf": {"rnn_type": "gru", "num_spk": 2, "layer": 1, "unit": 8},
            "decoder": "conv",
            "decoder_conf": {"channel": 16, "kernel_size": 16, "stride": 8},
            "train_data_path_and_name_and_type": [
                ["/home/somebody/wav.scp", "speech_mix", "sound"]
            ],
        }
        torch.manual_seed(0)
        model = EnhancementTask.build_model(argparse.Namespace(**config))
    root = tmp_path_factory.mktemp("machine")
    exp = root / "exp" / "tiny"
    (exp / "score_test").mkdir(parents=True)
    (exp / "profile").mkdir()
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(model.state_dict(), exp / "3epoch.pth")
    (exp / "valid.loss.best.pth").symlink_to("3epoch.pth")  # as ESPnet's trainer leaves it
    (exp / "RESULTS.md").write_text("# tiny\n")
    (exp / "score_test" / "summary.json").write_text(json.dumps(summary()))
    (exp / "profile" / "cost.json").write_text(json.dumps(COST))
    wav = root / "mixture.wav"
    soundfile.write(wav, 0.1 * np.random.default_rng(0).standard_normal(4000), RATE)
    experiment = Experiment(root, exp, root / "tiny.zip", wav)
    experiment.repack("tiny.zip")
    return experiment


@pytest.fixture
def experiment(trained: Experiment, tmp_path: Path) -> Experiment:
    root = tmp_path / "machine"
    shutil.copytree(trained.root, root, symlinks=True)
    return Experiment(root, root / "exp" / "tiny", root / "tiny.zip", root / "mixture.wav")
