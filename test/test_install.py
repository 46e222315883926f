"""Plain and editable installation into a new environment, what it gives, and that it leaves.

ESPnet and torch are not installed again: the new environment sees those of the running one.
"""

import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BORROWED = "borrowed.pth"
MAX_START_UP_MS = 5.0


def check_output(*command, **options):
    return subprocess.run(
        [str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True, **options
    ).stdout


class Environment:
    """A virtual environment without pip, served by the running environment's pip."""

    def __init__(self, folder):
        check_output(sys.executable, "-m", "venv", "--without-pip", folder)
        self.python = folder / "bin" / "python"
        self.packages = Path(
            check_output(
                self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
            ).strip()
        )
        # As a path in a .pth file, a folder's packages are found but its .pth files are not run.
        (self.packages / BORROWED).write_text(sysconfig.get_path("purelib") + "\n")

    def pip(self, *arguments):
        command = [sys.executable, "-m", "pip", "--python", self.python, *arguments]
        return check_output(*command, cwd=self.packages)

    def run(self, *arguments, **options):
        return check_output(self.python, "-W", "ignore", *arguments, cwd=self.packages, **options)

    def files(self):
        return sorted(path.name for path in self.packages.iterdir() if path.name != "__pycache__")


def start_up_ms(environments, runs=60):
    """Median processor time in which the interpreter of each environment starts and ends.

    Processor time, as other work on the machine hardly changes it.
    """
    seconds = [[] for _ in environments]
    for _ in range(runs):
        for environment, samples in zip(environments, seconds, strict=True):
            command = [str(environment.python), "-c", "pass"]
            child = os.posix_spawn(environment.python, command, os.environ)
            usage = os.wait4(child, 0)[2]
            samples.append(usage.ru_utime + usage.ru_stime)
    return [1000 * statistics.median(samples) for samples in seconds]


@pytest.fixture(params=["plain", "editable"])
def installed(request, tmp_path):
    environment = Environment(tmp_path / "venv")
    environment.before = environment.files()
    source = tmp_path / "source"  # building leaves files beside setup.py
    shutil.copytree(
        ROOT / "espnet2_sepx", source / "espnet2_sepx", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--editable"] if request.param == "editable" else []
    # Without isolation, as fetching the build tools would need a network.
    environment.pip("install", "-q", "--no-deps", "--no-build-isolation", *options, source)
    environment.origin = source if options else environment.packages
    return environment


@pytest.mark.slow
def test_an_installation_works_with_stock_espnet_and_leaves_without_a_trace(installed):
    where = "import espnet2_sepx as p; print(p.__file__)"
    assert installed.run("-c", where).startswith(str(installed.origin))
    assert (installed.origin / "espnet2_sepx" / "report" / "template.html").is_file()

    command = ["-m", "espnet2.bin.enh_train", "--print_config", "--separator", "tf_moe"]
    assert "separator: tf_moe" in installed.run(*command)
    disabled = {**os.environ, "ESPNET2_SEPX_DISABLE": "1"}
    with pytest.raises(subprocess.CalledProcessError):
        installed.run(*command, env=disabled, stderr=subprocess.DEVNULL)

    installed.pip("uninstall", "-q", "-y", "espnet2_sepx")
    assert installed.files() == installed.before


@pytest.mark.slow
def test_start_up_costs_little(installed, tmp_path):
    empty = Environment(tmp_path / "empty")
    with_hook, without = start_up_ms([installed, empty])
    print(f"start-up: {without:.2f} ms, with the hook {with_hook:.2f} ms")
    assert with_hook - without < MAX_START_UP_MS
