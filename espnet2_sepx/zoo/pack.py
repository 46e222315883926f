"""Packed models: what is inside, unpacking without leaving the folder, and proof that one works.

A pack is the zip file that ``espnet2.bin.pack enh`` writes: ``meta.yaml`` names the training
configuration and the weights by their path inside the archive. ESPnet stores paths relative to the
folder it ran in, but absolute ones for files outside of that folder; such a pack only works on the
machine that made it, and is refused here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from espnet2_sepx.errors import UserError

TOLERANCE = 1e-5  # of the peak: the largest accepted difference between pack and original


@dataclass(frozen=True)
class Pack:
    """A checked archive.

    Attributes:
        path: of the archive.
        config_name: path inside the archive of the training configuration.
        model_name: path inside the archive of the weights.
        sizes: bytes of each file, by its path inside the archive.
        meta: ``meta.yaml`` (versions of Python, PyTorch and ESPnet, time of packing).
    """

    path: Path
    config_name: str
    model_name: str
    sizes: dict[str, int]
    meta: dict[str, Any]


def open_pack(path: str | Path) -> Pack:
    """Check an archive (names, types, required members) without unpacking it."""
    path = Path(path)
    remedy = "make it again with stage 8"
    if not path.is_file():
        raise UserError(f"{path}: not found; {remedy}")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            for info in archive.infolist():
                _check_member(path, info)
            meta = yaml.safe_load(archive.read("meta.yaml"))
            config_name = meta["yaml_files"]["train_config"]
            model_name = meta["files"]["model_file"]
    except (zipfile.BadZipFile, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected a zip file written by 'espnet2.bin.pack enh'; {remedy}"
        ) from error
    for name in (config_name, model_name):
        if PurePosixPath(name).is_absolute() or name not in sizes:
            raise UserError(
                f"{path}: meta.yaml names {name}, which is not in the archive; run "
                "espnet2.bin.pack in a folder above the experiment, with relative paths"
            )
    return Pack(path, config_name, model_name, sizes, meta)


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    name = PurePosixPath(info.filename)
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or "\\" in info.filename or is_link:
        raise UserError(
            f"{path}: member {info.filename!r} would be unpacked outside of the folder; "
            "do not use this file"
        )


def extract(pack: Pack, folder: str | Path) -> None:
    """Unpack the files as they are."""
    with zipfile.ZipFile(pack.path) as archive:
        archive.extractall(folder)


def unpack(pack: Pack, folder: str | Path) -> tuple[Path, Path]:
    """Unpack as ESPnet and its model zoo do, which adapts paths in the configuration.

    Returns:
        Paths of the configuration and of the weights.
    """
    from espnet2.main_funcs.pack_funcs import unpack as espnet_unpack

    with contextlib.redirect_stdout(io.StringIO()):
        files = espnet_unpack(pack.path, folder)
    return Path(files["train_config"]), Path(files["model_file"])


def read_config(pack: Pack) -> dict[str, Any]:
    """The training configuration inside a pack."""
    with zipfile.ZipFile(pack.path) as archive:
        return dict(yaml.safe_load(archive.read(pack.config_name)))


def local_paths(config: Any) -> list[str]:
    """Absolute paths anywhere in a configuration, sorted."""
    if isinstance(config, dict):
        return sorted({path for value in config.values() for path in local_paths(value)})
    if isinstance(config, list | tuple):
        return sorted({path for value in config for path in local_paths(value)})
    if isinstance(config, str):
        path = PurePosixPath(config)
        return [config] if path.is_absolute() and len(path.parts) > 2 else []
    return []


# --- proof ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proof:
    """Outcome of a comparison; differences are relative to the peak of the original's output."""

    speakers: int
    seconds: float
    sample_rate: int
    largest_difference: float


def prove(pack: Pack, exp: str | Path, model_file: str | None, wav: str | Path) -> Proof:
    """Separate a file with the unpacked model and with the original one, in a fresh process.

    The process starts in an empty folder with an unpacked copy, and is watched: a packed model that
    opens a file of the experiment, or one that its configuration names, depends on this machine.

    Args:
        pack: the archive.
        exp: experiment folder with ``config.yaml`` and the weights.
        model_file: name of the weights in ``exp``, default: the name they have in the pack.
        wav: a mixture.

    Raises:
        UserError: the pack does not load, depends on local files, or its output differs.
    """
    config = Path(exp) / "config.yaml"
    weights = Path(exp) / (model_file or PurePosixPath(pack.model_name).name)
    for needed in (config, weights, Path(wav)):
        if not needed.is_file():
            raise UserError(f"{needed}: not found; check --exp, --model_file and --wav")
    with tempfile.TemporaryDirectory(prefix="check_pack_") as folder:
        work = Path(folder) / "elsewhere"
        work.mkdir()
        packed_config, packed_weights = unpack(pack, Path(folder) / "unpacked")
        result_file = Path(folder) / "result.json"
        request = {
            "packed": [str(packed_config), str(packed_weights)],
            "original": [str(config.resolve()), str(weights.resolve())],
            "wav": str(Path(wav).resolve()),
            "forbidden": [str(Path(exp).resolve()), *local_paths(read_config(pack))],
            "result": str(result_file),
        }
        _run_in_fresh_process(pack, request, work)
        result = json.loads(result_file.read_text(encoding="utf-8"))
    if result["opened"]:
        raise UserError(
            f"{pack.path}: the packed model opened {result['opened'][0]}, a file of this machine; "
            "pack it with --option, or train without that option"
        )
    if not result["difference"] <= TOLERANCE:
        raise UserError(
            f"{pack.path}: its output differs from that of {weights} by "
            f"{result['difference']:.3g} of the peak, expected at most {TOLERANCE:g}; "
            "were they made from the same checkpoint? Pack again"
        )
    return Proof(result["speakers"], result["seconds"], result["sample_rate"], result["difference"])


def _run_in_fresh_process(pack: Pack, request: dict[str, Any], folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "espnet2_sepx.zoo.separate_both", json.dumps(request)],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise UserError(
            f"{pack.path}: the packed model did not separate {request['wav']}: {last[0]}; "
            "check that espnet2_sepx is installed (python -m espnet2_sepx.bin.doctor), pack again"
        )
