"""ESPnet's trainer, made safe against a kill at any moment.

ESPnet writes ``checkpoint.pth`` in place and only afterwards the epoch's weights and the links
``latest.pth`` and ``*.best.pth``. A kill during these writes leaves a checkpoint that cannot be
read, or links that no later epoch mends. Here every file appears whole, and a resumed run first
brings the files of the last epoch in line with its checkpoint; so a killed and resumed training
ends with the same models as an uninterrupted one.

(ESPnet refuses ``--use_deepspeed true`` beside any trainer but its own; switch this package's
registration off, see ``espnet2_sepx.register``, to train a stock model with DeepSpeed.)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from espnet2.train.reporter import Reporter
from espnet2.train.trainer import Trainer

from espnet2_sepx.files import atomic_write, temporary_beside


class ResumableTrainer(Trainer):
    """``Trainer`` whose saves are atomic and whose ``--resume`` repairs what a kill left."""

    @classmethod
    def run(cls, **kwargs: Any) -> None:
        """Same arguments as ``Trainer.run`` (ESPnet passes them all by name)."""
        options, distributed = kwargs["trainer_options"], kwargs["distributed_option"]
        first_rank = not distributed.distributed or distributed.dist_rank == 0
        if options.resume and first_rank:
            repair_experiment(Path(options.output_dir), options.best_model_criterion)
        with atomic_torch_save():
            super().run(**kwargs)


@contextmanager
def atomic_torch_save() -> Iterator[None]:
    """Within the block ``torch.save`` to a path goes through a temporary name."""
    save = torch.save

    def save_atomically(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(f, str | os.PathLike):
            save(obj, f, *args, **kwargs)
            return
        with atomic_write(Path(f), "wb") as stream:
            save(obj, stream, *args, **kwargs)

    torch.save = save_atomically
    try:
        yield
    finally:
        torch.save = save


def repair_experiment(output_dir: Path, best_model_criterion: Any) -> None:
    """Write the last epoch's weights and links that a kill may have left out.

    Args:
        output_dir: the experiment folder; without a ``checkpoint.pth`` nothing is done.
        best_model_criterion: ESPnet's list of ``(phase, key, "min" | "max")``.
    """
    checkpoint = output_dir / "checkpoint.pth"
    if not checkpoint.exists():
        return
    states = torch.load(checkpoint, map_location="cpu", weights_only=False)
    reporter = Reporter()
    reporter.load_state_dict(states["reporter"])
    epoch = reporter.get_epoch()
    weights = output_dir / f"{epoch}epoch.pth"
    if not weights.exists():
        logging.info(f"writing {weights}, which an interrupted run left out")
        with atomic_write(weights, "wb") as stream:
            torch.save(states["model"], stream)
    _link(output_dir / "latest.pth", weights.name)
    for phase, key, mode in best_model_criterion:
        if reporter.has(phase, key):
            best = f"{reporter.get_best_epoch(phase, key, mode)}epoch.pth"
            if (output_dir / best).exists():
                _link(output_dir / f"{phase}.{key}.best.pth", best)


def _link(link: Path, target: str) -> None:
    if link.is_symlink() and os.readlink(link) == target:
        return
    temporary = temporary_beside(link)
    temporary.symlink_to(target)
    os.replace(temporary, link)
