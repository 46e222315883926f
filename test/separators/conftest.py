"""Makes the literal reference of test/layers importable here; untrained ESPnet experiments."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "layers"))


@pytest.fixture
def experiment(tmp_path, espnet_task):
    """Saves an untrained model of a configuration; returns its config.yaml and model.pth."""

    def save(config) -> tuple[str, str]:
        files = tmp_path / "config.yaml", tmp_path / "model.pth"
        (tmp_path / "in.yaml").write_text(yaml.safe_dump(config))
        parser = espnet_task.get_parser()
        args = parser.parse_args(["--config", str(tmp_path / "in.yaml"), "--output_dir", "unused"])
        torch.save(espnet_task.build_model(args).state_dict(), files[1])
        files[0].write_text(yaml.safe_dump(vars(args)))
        return str(files[0]), str(files[1])

    return save
