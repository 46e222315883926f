"""The start-up hook alone, with a stand-in for ESPnet that imports in no time."""

import os
import subprocess
import sys

import pytest

import espnet2_sepx

HOOKED = "from espnet2_sepx._hook import install; install()\n"


@pytest.fixture
def run(tmp_path):
    """Runs Python code in a new interpreter that finds our package and a stand-in for ESPnet.

    There ``register_all`` prints what of the task module existed when it was called.
    """
    tasks = tmp_path / "espnet2" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "enh.py").write_text("first = 1\nlast = 2\n")
    package = tmp_path / "espnet2_sepx"
    package.mkdir()
    (package / "__init__.py").touch()
    source = os.path.join(os.path.dirname(espnet2_sepx.__file__), "_hook.py")
    os.symlink(source, package / "_hook.py")
    (package / "registration.py").write_text(
        "import sys\n"
        "def register_all():\n"
        "    task = sys.modules['espnet2.tasks.enh']\n"
        "    print('registered', task.first, task.last)\n"
    )

    def run_code(code, **environment):
        return subprocess.run(
            [sys.executable, "-S", "-c", code],  # -S: without the hook of the installed package
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **environment},
        )

    run_code.folder = tmp_path
    return run_code


@pytest.mark.parametrize(
    "importing",
    [
        "import espnet2.tasks.enh",
        "from espnet2.tasks.enh import last",
        "import importlib; importlib.import_module('espnet2.tasks.enh')",
        "import runpy; import espnet2.tasks; import espnet2.tasks.enh",
    ],
)
def test_registers_right_after_the_task_module_ran(run, importing):
    result = run(HOOKED + importing)
    assert (result.stdout, result.stderr) == ("registered 1 2\n", "")


def test_registers_again_after_a_reload(run):
    code = "import importlib, espnet2.tasks.enh as enh; importlib.reload(enh)"
    assert run(HOOKED + code).stdout == "registered 1 2\n" * 2


def test_registers_at_once_if_the_task_is_loaded_already(run):
    assert run("import espnet2.tasks.enh\n" + HOOKED).stdout == "registered 1 2\n"


def test_installing_twice_registers_once(run):
    assert run(HOOKED + HOOKED + "import espnet2.tasks.enh").stdout == "registered 1 2\n"


def test_looking_for_the_module_runs_nothing(run):
    code = "import importlib.util as u; print(u.find_spec('espnet2.tasks.enh').name)"
    assert run(HOOKED + code).stdout == "espnet2.tasks.enh\n"


def test_a_missing_espnet_is_the_usual_import_error(run):
    (run.folder / "espnet2" / "tasks" / "enh.py").unlink()
    result = run(HOOKED + "import espnet2.tasks.enh")
    assert "ModuleNotFoundError: No module named 'espnet2.tasks.enh'" in result.stderr


@pytest.mark.parametrize(("value", "expected"), [("1", ""), ("0", "registered 1 2\n")])
def test_the_environment_switches_it_off(run, value, expected):
    result = run(HOOKED + "import espnet2.tasks.enh", ESPNET2_SEPX_DISABLE=value)
    assert (result.stdout, result.stderr) == (expected, "")


def test_an_error_of_ours_is_told_and_does_not_stop_espnet(run):
    (run.folder / "espnet2_sepx" / "registration.py").write_text("raise RuntimeError('broken')\n")
    result = run(HOOKED + "from espnet2.tasks.enh import last; print(last)")
    assert result.stdout == "2\n"
    assert result.stderr.startswith(
        "espnet2_sepx: our names are not registered with ESPnet: broken"
    )
    assert len(result.stderr.splitlines()) == 1


def test_start_up_loads_only_the_hook(run):
    """What the hook adds to an interpreter: our package's two small modules, nothing else."""
    code = "import os, sys; before = set(sys.modules)\n"
    code += HOOKED + "print(*sorted(set(sys.modules) - before))"
    assert run(code).stdout == "espnet2_sepx espnet2_sepx._hook\n"


def test_the_package_itself_imports_nothing():
    """The stand-in above has an empty ``__init__.py``; the real one must be as light."""
    code = "import sys; before = set(sys.modules)\nimport espnet2_sepx\n"
    code += "print(*sorted(set(sys.modules) - before))"
    folder = os.path.dirname(os.path.dirname(espnet2_sepx.__file__))
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=folder
    )
    assert result.stdout == "espnet2_sepx\n"
