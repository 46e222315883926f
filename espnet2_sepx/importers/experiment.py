"""Writes imported weights as an experiment that stock ``espnet2.bin.enh_inference`` runs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

import espnet2_sepx
from espnet2_sepx.errors import UserError
from espnet2_sepx.files import atomic_dir
from espnet2_sepx.importers import Imported

CONFIG, WEIGHTS = "config.yaml", "imported.pth"


def write_experiment(imported: Imported, folder: Path, origin: str) -> int:
    """Build the model, check that every parameter is there, and write configuration and weights.

    Args:
        imported: what a source made of a checkpoint.
        folder: of the experiment; it must not hold another one.
        origin: where the weights come from, recorded in the configuration.

    Returns:
        number of parameters.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists; give --output_dir a new folder")
    espnet2_sepx.register()
    from espnet2.tasks.enh import EnhancementTask

    config = {
        **imported.config,
        "criterions": [
            {
                "name": "si_snr",
                "conf": {},
                "wrapper": "pit",
                "wrapper_conf": {"weight": 1.0, "independent_perm": True},
            }
        ],
    }
    if imported.sample_rate is not None:
        config["sample_rate"] = int(imported.sample_rate)
    with atomic_dir(folder) as temporary:
        args = vars(_with_defaults(EnhancementTask, config, folder))
        (temporary / CONFIG).write_text(
            f"# Made by espnet2_sepx {espnet2_sepx.__version__} from {origin}\n"
            + yaml.safe_dump(args, sort_keys=True),
            encoding="utf-8",
        )
        try:
            model = EnhancementTask.build_model(_namespace(args))
            model.load_state_dict(imported.state)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{origin}: {' '.join(str(error).split())}") from error
        torch.save(model.state_dict(), temporary / WEIGHTS)
    return sum(parameter.numel() for parameter in model.parameters())


def _with_defaults(task: Any, config: dict[str, Any], folder: Path) -> Any:
    """ESPnet's own parser fills in what training would have."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as stream:
        yaml.safe_dump(config, stream)
        stream.flush()
        arguments = ["--config", stream.name, "--output_dir", str(folder)]
        args = task.get_parser().parse_args(arguments)
    args.config = None
    return args


def _namespace(values: dict[str, Any]) -> Any:
    import argparse

    return argparse.Namespace(**values)
