"""One fake experiment for all tests of the report; tests that change it copy it first."""

from __future__ import annotations

import shutil
from pathlib import Path

import fake_experiment as fake
import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(experiment folder, data folder), read only."""
    return fake.make_experiment(tmp_path_factory.mktemp("report"))


@pytest.fixture
def experiment(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, to be changed at will (audio files are shared)."""
    exp = tmp_path / "exp"
    shutil.copytree(finished[0], exp)
    return exp, finished[1]
