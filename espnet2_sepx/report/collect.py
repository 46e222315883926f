"""What an experiment folder holds: read all that exists, name all that does not.

Nothing here draws or computes; the other modules of the report work on :class:`Experiment`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from espnet2_sepx.errors import UserError
from espnet2_sepx.report.curves import Curves, read_curves

TEXT_COLUMNS = ("utt", "permutation", "note")

Row = dict[str, Any]


@dataclass(frozen=True)
class Missing:
    """A part of the report that could not be made."""

    what: str
    path: Path
    stage: int
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.what} ({self.detail})" if self.detail else self.what

    @property
    def command(self) -> str:
        """The command that creates it, to be run in the recipe's folder."""
        return f"./run.sh --stage {self.stage} --stop_stage {self.stage}"


@dataclass
class EvalSet:
    """One evaluated set: its data folder, the separated signals and their scores."""

    name: str
    data: Path | None
    separated: Path | None
    summary: dict[str, Any] | None
    rows: list[Row]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        return (self.summary or {}).get("metrics", {})


@dataclass
class Experiment:
    """Everything the report shows, as read from the files of one experiment."""

    directory: Path
    name: str
    config: dict[str, Any]
    model_file: Path | None
    curves: Curves | None
    cost: dict[str, Any] | None
    sets: list[EvalSet]
    budgets: dict[str, Any] | None = None
    missing: list[Missing] = field(default_factory=list)

    @property
    def separator(self) -> str:
        return str(self.config.get("separator", "unknown"))

    @property
    def separator_conf(self) -> dict[str, Any]:
        return self.config.get("separator_conf") or {}

    @property
    def encoder_conf(self) -> dict[str, Any]:
        return self.config.get("encoder_conf") or {}


def collect(exp: Path, data_dirs: list[Path], model_file: Path | None = None) -> Experiment:
    """Read an experiment folder and the data folders of the sets it was evaluated on.

    Raises:
        UserError: a path that was named explicitly does not exist or cannot be parsed.
    """
    if not exp.is_dir():
        raise UserError(f"--exp {exp}: no such folder; give the experiment folder of the recipe")
    for data in data_dirs:
        if not (data / "wav.scp").is_file():
            raise UserError(
                f"--data_dirs {data}: no wav.scp in it; give a data folder made by stage 2"
            )
    missing: list[Missing] = []
    config = _read_config(exp / "config.yaml", missing)
    model = find_model_file(exp, model_file)
    if model is None:
        missing.append(Missing("trained model", exp / "valid.*.best.pth", 3))
    curves = read_curves(exp)
    if curves is None:
        missing.append(Missing("training curves", exp / "checkpoint.pth", 3))
    sets = [_read_set(exp, data.name, data, missing) for data in data_dirs]
    named = {data.name for data in data_dirs}
    for folder in sorted(exp.glob("score_*")):
        name = folder.name.removeprefix("score_")
        if name not in named and (folder / "summary.json").is_file():
            sets.append(_read_set(exp, name, None, missing))
    cost_file = exp / "profile" / "cost.json"
    cost = _read_json(cost_file) if cost_file.is_file() else None
    if cost is None:
        missing.append(Missing("cost (parameters, MACs, speed, memory)", cost_file, 6))
    budgets_file = exp / "profile" / "budgets.json"
    budgets = _read_json(budgets_file) if budgets_file.is_file() else None
    if budgets is None and config.get("separator") == "dsn":
        missing.append(Missing("quality by utilisation", budgets_file, 6))
    return Experiment(exp, exp.resolve().name, config, model, curves, cost, sets, budgets, missing)


def find_model_file(exp: Path, named: Path | None) -> Path | None:
    """The weights to look into: the named file, else the best epoch, else the latest one."""
    if named is not None:
        if not named.is_file():
            raise UserError(f"--model_file {named}: no such file; train first (stage 3)")
        return named
    for pattern in ("valid.si_snr_loss.best.pth", "valid.*.best.pth"):
        found = sorted(path for path in exp.glob(pattern) if path.is_file())
        if found:
            return found[0]
    epochs = [path for path in exp.glob("*epoch.pth") if path.name[: -len("epoch.pth")].isdigit()]
    return max(epochs, key=lambda path: int(path.name[: -len("epoch.pth")]), default=None)


def read_rows(path: Path) -> list[Row]:
    """``utterances.csv``: numbers as float, empty or non-finite cells as None."""
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            return [
                {
                    key: (cell if key in TEXT_COLUMNS else _number(cell))
                    for key, cell in row.items()
                    if key is not None
                }
                for row in csv.DictReader(stream)
            ]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); run stage 5 again") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def versions(config: dict[str, Any]) -> dict[str, str]:
    """Versions of the software that wrote the report, and of the ESPnet that trained."""
    found = {"python": platform.python_version()}
    for package in ("espnet2_sepx", "espnet", "torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if "espnet2_sepx" not in found:  # run from a checkout that was not installed
        from espnet2_sepx import __version__

        found["espnet2_sepx"] = __version__
    if config.get("version"):
        found["espnet (training)"] = str(config["version"])
    return found


def _read_config(path: Path, missing: list[Missing]) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        missing.append(Missing("configuration", path, 3))
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML; train again (stage 3)") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a table of options; train again (stage 3)")
    return config


def _read_set(exp: Path, name: str, data: Path | None, missing: list[Missing]) -> EvalSet:
    score = exp / f"score_{name}"
    summary, rows = None, []
    if (score / "summary.json").is_file():
        summary = _read_json(score / "summary.json")
    else:
        missing.append(Missing(f"scores of set '{name}'", score / "summary.json", 5))
    if (score / "utterances.csv").is_file():
        rows = read_rows(score / "utterances.csv")
    elif summary is not None:
        missing.append(Missing(f"per-utterance scores of '{name}'", score / "utterances.csv", 5))
    separated: Path | None = exp / f"separated_{name}"
    if separated is not None and not (separated / "spk1.scp").is_file():
        if data is not None:
            missing.append(Missing(f"separated signals of '{name}'", separated / "spk1.scp", 4))
        separated = None
    return EvalSet(name, data, separated, summary, rows)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not valid JSON; run the stage that writes it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; run the stage that writes it again")
    return value


def _number(cell: str | None) -> float | None:
    if cell is None or not cell.strip():
        return None
    value = float(cell)
    return value if math.isfinite(value) else None
