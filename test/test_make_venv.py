"""Before installing anything, tools/make_venv.sh says what the machine lacks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "make_venv.sh"
NEEDED = ("bash", "dirname", "awk", "df")


@pytest.fixture
def make_venv(tmp_path):
    """Runs the script with nothing on PATH but its basic tools and the given programs."""

    def run(*arguments, **programs):
        path = tmp_path / "bin"
        path.mkdir()
        for name in NEEDED:
            os.symlink(shutil.which(name), path / name)
        for name, text in programs.items():
            (path / name).write_text(f"#!/bin/sh\n{text}\n")
            (path / name).chmod(0o755)
        result = subprocess.run(
            [str(SCRIPT), str(tmp_path / "venv"), *arguments],
            env={"PATH": str(path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not (tmp_path / "venv").exists()
        assert len(result.stderr.splitlines()) == 1
        return result.returncode, result.stderr

    return run


OLD = 'test "$1" = -V && echo Python 3.9.18 || exit 1'
THIS = f'exec "{sys.executable}" "$@"'


@pytest.mark.parametrize(
    ("arguments", "programs", "message"),
    [
        (["no_such"], {}, "PYTHON='no_such': no such program"),
        (["python3"], {"python3": OLD}, "is Python 3.9.18; expected Python 3.10 to 3.12"),
        ([], {"python3": OLD}, "no Python 3.10 to 3.12 on PATH (Python 3.9.18)"),
        ([], {"python3": OLD, "python3.11": THIS}, "no C compiler (cc) on PATH"),
        (["python3"], {"python3": THIS, "cc": ""}, "no C++ compiler (c++) on PATH"),
    ],
)
def test_what_is_missing_is_said_in_one_line(make_venv, arguments, programs, message):
    status, error = make_venv(*arguments, **programs)
    assert status == 2
    assert message in error
