"""Published weights of other toolkits, made into ESPnet experiments: one row per source.

A source is a module with

* ``FILES``: glob patterns of the files it needs, all that is downloaded;
* ``recognises(folder) -> bool``: whether a folder holds its kind of checkpoint (cheap);
* ``load(folder, options) -> Imported``: ``options`` override what the checkpoint says or leaves
  out about the separator. It loads with ``weights_only=True`` and raises ``UserError``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from espnet2_sepx.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class Row(NamedTuple):
    """A source: its name on the command line, where it lives, and what it reads."""

    name: str
    module: str
    reads: str


SOURCES = (
    Row(
        "speechbrain",
        "espnet2_sepx.importers.speechbrain",
        "SpeechBrain's RE-SepFormer and SepFormer: encoder.ckpt, masknet.ckpt, decoder.ckpt and "
        "hyperparams.yaml",
    ),
)


@dataclass
class Imported:
    """What a source made of a checkpoint.

    Attributes:
        config: ESPnet's ``encoder``, ``separator``, ``decoder`` and their ``_conf``, all options of
            the separator that the weights were trained with stated.
        state: parameters of the ESPnet model.
        sample_rate: in Hz; none: the checkpoint does not say.
        notes: assumptions, for the user to read.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    sample_rate: int | None = None
    notes: list[str] = field(default_factory=list)


def find_source(folder: Path, name: str | None) -> ModuleType:
    """The module of the named source, or of the one that recognises the folder."""
    if name is not None:
        return importlib.import_module(next(row.module for row in SOURCES if row.name == name))
    for row in SOURCES:
        module = importlib.import_module(row.module)
        if module.recognises(folder):
            return module
    known = "; ".join(f"{row.name} ({row.reads})" for row in SOURCES)
    raise UserError(f"{folder}: holds no checkpoint of a known kind. Known: {known}")


def download_patterns(name: str | None) -> list[str]:
    """Files to fetch for a source, or for any."""
    rows = [row for row in SOURCES if name in (None, row.name)]
    patterns = (importlib.import_module(row.module).FILES for row in rows)
    return sorted({pattern for files in patterns for pattern in files})
