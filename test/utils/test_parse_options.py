"""utils/parse_options.sh, run as a user's script would run it."""

import subprocess
from pathlib import Path

import pytest

PARSER = Path(__file__).parents[2] / "utils" / "parse_options.sh"

SCRIPT = """#!/usr/bin/env bash
# Separate two voices.
#
# Usage: ./demo.sh [--nj N] FILE

# A remark that is no help.
set -euo pipefail
# Stages
stage=1; stop_stage=9
nj=4            # parallel jobs,
                # one thread each
resume=true
enh_args=       # passed on
export FROM_OUTSIDE=1
. {parser}
printf '%s\\n' "stage=${{stage}} stop_stage=${{stop_stage}} nj=${{nj}} resume=${{resume}}"
printf 'enh_args=<%s>\\n' "${{enh_args}}"
printf 'rest=<%s>\\n' "$@"
compgen -v _po_ || compgen -A function _po_ || true
"""


@pytest.fixture
def call(tmp_path):
    def run(*arguments, script=SCRIPT, **environment):
        (tmp_path / "demo.sh").write_text(script.format(parser=PARSER))
        return subprocess.run(
            ["bash", "./demo.sh", *arguments],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_defaults_hold_and_nothing_is_left_in_the_script(call):
    result = call()
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "stage=1 stop_stage=9 nj=4 resume=true",
        "enh_args=<>",
        "rest=<>",
    ]


def test_both_forms_dashes_and_the_end_of_options(call):
    result = call("--stage", "3", "--stop-stage=4", "--nj", "2", "file name", "--nj", "9")
    assert result.stdout.splitlines() == [
        "stage=3 stop_stage=4 nj=2 resume=true",
        "enh_args=<>",
        "rest=<file name>",
        "rest=<--nj>",
        "rest=<9>",
    ]
    assert "rest=<--nj>" in call("--stage", "3", "--", "--nj", "9").stdout


@pytest.mark.parametrize(
    "value",
    ["a  b", '"$HOME" `id` $(id)', "it's; rm *", "back\\slash\\n", "--max_epoch 3", "x=y", ""],
)
@pytest.mark.parametrize("form", ["two", "one"])
def test_values_arrive_as_they_are(call, value, form):
    arguments = ["--enh_args", value] if form == "two" else [f"--enh_args={value}"]
    result = call(*arguments, "--nj", "3")
    assert f"enh_args=<{value}>\n" in result.stdout
    assert "nj=3" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stpo_stage", "3"], "unknown option --stpo_stage (nearest: --stop_stage)"),
        (["--resum=true"], "unknown option --resum (nearest: --resume)"),
        (["--FROM_OUTSIDE", "2"], "unknown option --FROM_OUTSIDE"),
        (["--path", "2"], "unknown option --path"),
        (["--from_parent", "2"], "unknown option --from_parent"),
        (["--a b", "1"], "unknown option --a b"),
        (["--nj"], "option --nj lacks its value"),
        (["--nj", "--stage", "3"], "option --nj lacks its value (--stage follows)"),
        (["--resume", "yes"], "option --resume takes true or false, got 'yes'"),
        (["--resume", ""], "option --resume takes true or false, got ''"),
        (["--config", "none.conf"], "--config 'none.conf': no such readable file"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(call, arguments, message):
    result = call(*arguments, from_parent="1")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: demo.sh: {message}")
    assert result.stderr.endswith("; see ./demo.sh --help\n")
    assert result.stderr.count("\n") == 1


def test_help_from_the_header_and_the_defaults(call):
    result = call("--nj", "7", "--help")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[:3] == ["Separate two voices.", "", "Usage: ./demo.sh [--nj N] FILE"]
    assert "remark" not in result.stdout
    assert "  Stages" in lines
    options = [line.split()[0] for line in lines if line.startswith("  --")]
    assert options == ["--stage", "--stop_stage", "--nj", "--resume", "--enh_args", "--config"]
    assert any(
        line.split(maxsplit=1)[1:] == ["parallel jobs, one thread each [4]"] for line in lines
    )


def test_help_message_wins_over_the_header(call):
    script = SCRIPT.replace("# Stages\n", 'help_message="First line\\nSecond line"\n')
    result = call("-h", script=script)
    assert result.stdout.startswith("First line\nSecond line\n\nOptions")
    assert "--help_message" not in result.stdout


def test_config_file_comes_before_the_command_line(call, tmp_path):
    (tmp_path / "my.conf").write_text("nj=11\nenh_args='from config'\nstage=5\n")
    result = call("--stage", "6", "--config", "my.conf")
    assert "stage=6 stop_stage=9 nj=11" in result.stdout
    assert "enh_args=<from config>" in result.stdout


def test_config_file_is_checked_too(call, tmp_path):
    (tmp_path / "my.conf").write_text("njj=11\n")
    assert "my.conf sets unknown options: njj" in call("--config", "my.conf").stderr
    (tmp_path / "my.conf").write_text("resume=1\n")
    assert "my.conf: resume takes true or false, got '1'" in call("--config=my.conf").stderr


def test_options_of_a_sourced_file_count(call, tmp_path):
    (tmp_path / "defaults.sh").write_text("beam=10\n")
    script = SCRIPT.replace("# Stages\n", ". ./defaults.sh\n") + 'echo "beam=${{beam}}"\n'
    assert "beam=3\n" in call("--beam", "3", script=script).stdout


def test_a_variable_of_the_environment_is_an_option_only_if_the_script_sets_it(call):
    assert "nj=3" in call("--nj", "3", nj="8").stdout
    assert "nj=4" in call(nj="8").stdout
