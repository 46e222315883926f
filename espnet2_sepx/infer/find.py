"""What a user may call a model: a folder, a packed zip, a name in a zoo, a Hugging Face id.

Nothing is unpacked: configuration and parameters are read from where they are.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from espnet2_sepx.errors import UserError
from espnet2_sepx.files import atomic_write

ZOO_VARIABLE = "ESPNET2_SEPX_ZOO"
_TIMEOUT_S = 60
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelFiles:
    """Configuration and parameters of one model.

    Attributes:
        config: content of the training configuration.
        config_name, weights_name: how to call the two in messages.
        archive: the packed model; None for files in a folder.
        weights: path of the parameters, inside the archive if there is one.
    """

    config: dict[str, Any]
    config_name: str
    weights_name: str
    weights: str
    archive: Path | None = None

    def open_weights(self) -> IO[bytes]:
        """The parameter file, to be read from the start, in any order."""
        if self.archive is None:
            return open(self.weights, "rb")
        with zipfile.ZipFile(self.archive) as archive:
            return io.BytesIO(archive.read(self.weights))

    @property
    def identity(self) -> list[object]:
        """What changes whenever the model does: place, size and time of its parameters."""
        path = Path(self.archive or self.weights)
        facts = path.stat()
        return [str(path.resolve()), facts.st_size, facts.st_mtime_ns]


def find_model(model: str, model_file: str | None = None, zoo: str | None = None) -> ModelFiles:
    """Find out what ``model`` is.

    Args:
        model: experiment folder (or its config.yaml), packed model (zip), name in ``zoo``, or
            ``user/name`` at Hugging Face.
        model_file: parameters to use, a path, or a name in the experiment folder.
        zoo: folder or web address of a self-hosted zoo; default: the variable ESPNET2_SEPX_ZOO.

    Raises:
        UserError: nothing of that name, or it is not a model.
    """
    path = Path(model)
    if path.is_dir():
        return _in_folder(path, model_file)
    if path.is_file():
        if path.suffix in (".yaml", ".yml"):
            return _in_folder(path.parent, model_file, path.name)
        return _in_archive(path, model_file)
    zoo = zoo or os.environ.get(ZOO_VARIABLE)
    known: list[str] = []
    if zoo:
        rows = {row["name"]: row for row in _zoo_table(zoo)}
        if model in rows:
            return _in_archive(_fetch(zoo, rows[model]), model_file)
        known = sorted(rows)
    if _HUB_ID.fullmatch(model) and not known:
        return _in_folder(_from_hub(model), model_file)
    found = f"the zoo {zoo} has: {', '.join(known)}" if known else "there is no such path"
    raise UserError(
        f"--model {model}: {found}; give an experiment folder, a packed model (zip), a name in "
        f"--zoo, or a Hugging Face id user/name"
    )


def _in_folder(
    folder: Path, model_file: str | None, config_name: str = "config.yaml"
) -> ModelFiles:
    config_path = folder / config_name
    meta_path = folder / "meta.yaml"
    if not config_path.is_file() and meta_path.is_file():  # an unpacked pack
        meta = _read_yaml(meta_path)
        try:
            config_path = folder / meta["yaml_files"]["train_config"]
            model_file = model_file or str(folder / meta["files"]["model_file"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{meta_path}: names no model; get it again") from error
    if not config_path.is_file():
        raise UserError(
            f"{folder}: no {config_name} in it; give the experiment folder, which holds "
            "config.yaml and *.pth"
        )
    config = _read_yaml(config_path)
    weights = _choose_weights(folder, model_file, config)
    return ModelFiles(config, str(config_path), str(weights), str(weights))


def _choose_weights(folder: Path, model_file: str | None, config: dict[str, Any]) -> Path:
    """The best epoch by the configuration's own criterion, unless told otherwise."""
    if model_file is not None:
        for path in (folder / model_file, Path(model_file)):
            if path.is_file():
                return path
        raise UserError(f"--model_file {model_file}: no such file, nor in {folder}")
    criteria = [
        f"{entry[0]}.{entry[1]}"
        for entry in config.get("best_model_criterion") or []
        if isinstance(entry, list | tuple) and len(entry) > 1
    ]
    for kind in ("best", "ave"):
        for criterion in criteria:
            if (path := folder / f"{criterion}.{kind}.pth").is_file():
                return path
    found = sorted(path for path in folder.glob("*.pth") if path.name != "checkpoint.pth")
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or "none"
    raise UserError(
        f"{folder}: which parameters? Looked for {criteria[0] if criteria else '<criterion>'}"
        f".best.pth, found: {names}; name one with --model_file"
    )


def _in_archive(path: Path, model_file: str | None) -> ModelFiles:
    from espnet2_sepx.zoo.pack import open_pack

    pack = open_pack(path)
    weights = model_file or pack.model_name
    if weights not in pack.sizes:
        raise UserError(f"--model_file {weights}: not in {path}; leave the option out")
    with zipfile.ZipFile(path) as archive:
        config = _parse_yaml(archive.read(pack.config_name), f"{path}:{pack.config_name}")
    return ModelFiles(config, f"{path}:{pack.config_name}", f"{path}:{weights}", weights, path)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        return _parse_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _parse_yaml(text: bytes, name: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: is not plain YAML ({reason}); get the file again") from error
    if not isinstance(content, dict):
        raise UserError(f"{name}: expected 'key: value' lines of an ESPnet enh configuration")
    return content


# --- elsewhere -----------------------------------------------------------------------------------


def _zoo_table(zoo: str) -> list[dict[str, str]]:
    from espnet2_sepx.zoo.table import read_table

    if not _is_web(zoo):
        table = Path(zoo) / "table.csv"
        if not table.is_file():
            raise UserError(f"--zoo {zoo}: no table.csv in it; give the folder of a model zoo")
        return read_table(table)
    text = _download(f"{zoo.rstrip('/')}/table.csv").decode("utf-8", "replace")
    rows = list(csv.DictReader(io.StringIO(text)))
    if rows and not {"name", "url"} <= set(rows[0]):
        raise UserError(f"--zoo {zoo}: table.csv lacks the columns name and url")
    return rows


def _fetch(zoo: str, row: dict[str, str]) -> Path:
    """Path of the archive of a row, downloaded once if it is on the web; checked either way."""
    url, digest = row["url"], row.get("sha256") or ""
    if _is_web(url):
        name = hashlib.sha256(url.encode()).hexdigest()[:16]
        path = _cache_dir() / f"{name}.zip"
        if not path.is_file():
            content = _download(url)
            with atomic_write(path, "wb") as stream:
                stream.write(content)
    else:
        path = Path(zoo) / url  # an absolute one stays what it is
    if digest:
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check --zoo") from error
        if found != digest:
            if _is_web(url):
                path.unlink()
            raise UserError(f"{path}: is not what the zoo's table says (sha256); get it again")
    return path


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "espnet2_sepx"


def _is_web(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            return response.read()
    except OSError as error:
        raise UserError(
            f"{url}: cannot be fetched ({error}); check --zoo and the network"
        ) from error


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo))
    except Exception as error:  # its classes differ between the majors of huggingface_hub
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"--model {repo}: neither a path here nor to be had from Hugging Face ({reason}); "
            "check the name and the network"
        ) from error
