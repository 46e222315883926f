"""Laws that hold for every command of the package."""

import subprocess
import sys
from pathlib import Path

import pytest

import espnet2_sepx.bin

COMMANDS = sorted(
    path.stem for path in Path(espnet2_sepx.bin.__file__).parent.glob("*.py") if path.stem[0] != "_"
)
HEAVY = {"torch", "espnet2", "scipy", "matplotlib"}


def run(command, *options):
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"espnet2_sepx.bin.{command}", *options],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_instant(command):
    """Instant means: nothing heavy is imported."""
    result = run(command, "--help")
    assert result.returncode == 0
    assert f"python -m espnet2_sepx.bin.{command}" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not imported & HEAVY


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_an_error(command):
    result = run(command, "--no_such_option", "1")
    assert result.returncode == 2
    assert "error:" in result.stderr
    assert "Traceback" not in result.stderr
