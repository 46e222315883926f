"""Published weights of other toolkits, made into ESPnet experiments: one row per source.

A source is a module with

* ``FILES``: glob patterns of the files it needs, all that is downloaded;
* ``recognises(folder) -> bool``: whether a folder holds its kind of checkpoint (cheap);
* ``load(folder, options) -> Imported``: ``options`` override what the checkpoint says or leaves
  out about the separator. It loads with ``weights_only=True`` and raises ``UserError``.
"""

from __future__ import annotations

import importlib
import shutil
import zipfile
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
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
    Row(
        "spmamba",
        "espnet2_sepx.importers.spmamba",
        "the authors' SPMamba: best_model.pth and conf.yml",
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


def unpack(archive: Path, name: str | None, folder: Path) -> None:
    """Take the files that a source (or any) needs out of a zip, from whatever folder they are in.

    Everything goes straight into ``folder``: names in the archive decide on no path.

    Raises:
        UserError: a damaged archive, or one with several files of one name.
    """
    patterns = download_patterns(name)
    try:
        with zipfile.ZipFile(archive) as content:
            members: dict[str, list[zipfile.ZipInfo]] = {}
            for member in content.infolist():
                base = PurePosixPath(member.filename).name
                if not member.is_dir() and any(fnmatch(base, pattern) for pattern in patterns):
                    members.setdefault(base, []).append(member)
            for base, found in members.items():
                if len(found) > 1:
                    names = ", ".join(member.filename for member in found)
                    raise UserError(f"{archive}: holds several {base}: {names}; unpack one of them")
                with content.open(found[0]) as source, open(folder / base, "wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{archive}: cannot unpack ({error})") from error


def download_patterns(name: str | None) -> list[str]:
    """Files to fetch for a source, or for any."""
    rows = [row for row in SOURCES if name in (None, row.name)]
    patterns = (importlib.import_module(row.module).FILES for row in rows)
    return sorted({pattern for files in patterns for pattern in files})
