"""utils/run.py: results, logs, failures, progress, and nothing left over after any kill."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

UTILS = Path(__file__).parents[2] / "utils"
RUN = [sys.executable, str(UTILS / "run.py")]


def run(*arguments, cwd, **environment):
    return subprocess.run(
        [*RUN, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def output_of(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if not line.startswith("#")]


def test_log_has_header_output_and_footer(tmp_path):
    result = run("log/a.log", "echo", "a  b", "|", "$HOME", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    lines = (tmp_path / "log" / "a.log").read_text().splitlines()
    assert lines[0] == "# echo 'a  b' '|' '$HOME'"
    assert re.match(r"# Started at \w+", lines[2])
    assert lines[4] == "a  b | $HOME"  # no shell has seen it
    assert re.match(r"# Accounting: time=\d+ threads=1$", lines[5])
    assert re.match(r"# Ended \(code 0\) at .*, elapsed time \d+ seconds$", lines[6])


def test_jobs_are_numbered_in_log_and_arguments(tmp_path):
    result = run("--mem", "4G", "J=2:4", "-V", "a.J.log", "echo", "job J of J-3", cwd=tmp_path)
    assert result.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.2.log", "a.3.log", "a.4.log"]
    assert output_of(tmp_path / "a.3.log") == ["job 3 of 3-3"]


def test_failure_names_the_log_and_shows_its_end(tmp_path):
    script = 'seq 30; echo "# a heading"; printf "half\\r 50%%\\r100%%"; [ JOB != 2 ]'
    result = run("JOB=1:3", "a.JOB.log", "bash", "-c", script, cwd=tmp_path)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[:3] == [
        "run.py: 1 / 3 failed, logs are in a.*.log",
        "run.py: first failure (code 1): a.2.log",
        "run.py: last lines of a.2.log:",
    ]
    shown = [f"  | {number}" for number in range(13, 31)] + ["  | # a heading", "  | 100%"]
    assert lines[3:] == shown
    assert "# Ended (code 1)" in (tmp_path / "a.2.log").read_text().splitlines()[-1]
    assert "# Ended (code 0)" in (tmp_path / "a.3.log").read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["bash", "-c", "exit 3"], "code 3"),
        (["bash", "-c", "kill -9 $$"], "code 137, signal 9: killed, perhaps for lack of memory"),
        (["no-such-program"], "code 127"),
    ],
)
def test_reason_of_a_failure(tmp_path, command, reason):
    result = run("a.log", *command, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"run.py: job failed ({reason}), log is in a.log\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.log"], "a log file and a command are needed"),
        (["JOB=1:2", "a.log", "true"], "a range of jobs needs JOB in the log's name, got 'a.log'"),
        (["JOB=0:2", "a.JOB.log", "true"], "job range JOB=0:2 must be 1 <= first <= last"),
        (["--gpu", "x", "a.log", "true"], "--gpu takes a number of at least 0, got 'x'"),
        (["--max-jobs-run=0", "a.log", "true"], "--max-jobs-run takes a number of at least 1"),
        (["--mem"], "option --mem lacks its value"),
        (["/proc/a.log", "true"], "cannot write the log /proc/a.log"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(tmp_path, arguments, message):
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: run.py: {message}")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_max_jobs_run_is_kept_and_used(tmp_path):
    # Each job notes how many run, itself included.
    script = "touch run.JOB; ls run.* | wc -l; sleep 0.3; rm run.JOB"
    result = run("--max-jobs-run", 2, "JOB=1:6", "a.JOB.log", "bash", "-c", script, cwd=tmp_path)
    assert result.returncode == 0
    counts = [int(output_of(tmp_path / f"a.{job}.log")[0]) for job in range(1, 7)]
    assert max(counts) == 2


def test_environment_of_jobs(tmp_path):
    script = 'echo "<${CUDA_VISIBLE_DEVICES-unset}> <${OMP_NUM_THREADS-unset}>"'
    clean = {"CUDA_VISIBLE_DEVICES": "3,5", "OMP_NUM_THREADS": "1"}
    run("a.log", "bash", "-c", script, cwd=tmp_path, **clean)
    run("--gpu", 0, "--num-threads", 7, "b.log", "bash", "-c", script, cwd=tmp_path, **clean)
    run(
        "--gpu",
        1,
        "JOB=1:4",
        "c.JOB.log",
        "bash",
        "-c",
        f"{script}; sleep 0.2",
        cwd=tmp_path,
        **clean,
    )
    assert output_of(tmp_path / "a.log") == ["<3,5> <1>"]
    assert output_of(tmp_path / "b.log") == ["<> <7>"]
    spread = [output_of(tmp_path / f"c.{job}.log")[0] for job in range(1, 5)]
    assert sorted(spread[:2]) == sorted(spread[2:]) == ["<3> <1>", "<5> <1>"]


def test_progress_lines_without_a_terminal(tmp_path):
    sys.path.insert(0, str(UTILS))
    try:
        from job_common import Progress, parse_arguments
    finally:
        sys.path.remove(str(UTILS))
    log = tmp_path / "a.1.log"
    log.write_text("# cmd\n[vm] 2026-01-31 12:00:00,123 (trainer:330) INFO: 3epoch started\n#\n")
    with open(tmp_path / "shown", "w") as stream:
        request = parse_arguments(["--progress", "train", "JOB=1:3", "a.JOB.log", "x"])
        progress = Progress(request, stream, interval_s=0.0)
        progress.update(1, [log, tmp_path / "a.2.log"], ", 1 pending")
        progress.close(failed=0)
    assert (tmp_path / "shown").read_text().splitlines() == [
        "train: 0:00, 1/3 jobs done, 1 pending | 3epoch started",
        "train: done in 0:00 (3 jobs)",
    ]


def test_progress_on_a_terminal_is_one_line(tmp_path):
    script = 'for i in 1 2 3 4; do printf "\\r$i/4 steps"; sleep 0.3; done'
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [*RUN, "a.log", "bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "JOB_PROGRESS": "train"},
        stderr=terminal,
    )
    assert process.wait(timeout=30) == 0
    os.close(terminal)
    shown = os.read(main, 65536).decode()
    os.close(main)
    assert re.search(r"\rtrain: 0:0\d \| [2-4]/4 steps\x1b\[K", shown)
    assert shown.count("\n") == 1
    assert shown.endswith("\rtrain: done in 0:01\x1b[K\r\n")


# A job with a child, a grandchild in another session, and an orphan; the marker makes them known.
FAMILY = "setsid sleep {0} & (sleep {0} &); sleep {0}; true"


def processes(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:  # it has just ended
            continue
    return found


def wait_until(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def foreground() -> None:
    """In a child: Ctrl-C works, also when these tests run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    "victim",
    ["script", "script over a subshell", "group", "run.py", "supervisor", "ctrl-c", "sigterm"],
)
def test_nothing_is_left_over_after_a_kill(tmp_path, victim):
    marker = f"7000.{time.time_ns()}"
    command = f"{' '.join(RUN)} {tmp_path}/a.log bash -c '{FAMILY.format(marker)}'"
    if victim == "script over a subshell":
        command = f"( ({command}; true); true)"
    script = subprocess.Popen(
        ["bash", "-c", f"{command}; true"], start_new_session=True, preexec_fn=foreground
    )
    # the three sleeps, their shell, run.py twice, and the script
    assert wait_until(lambda: len(processes(marker)) >= 7)
    if victim.startswith("script"):
        script.kill()
    elif victim == "group":
        os.killpg(script.pid, signal.SIGKILL)
    elif victim == "ctrl-c":
        os.killpg(script.pid, signal.SIGINT)
    else:
        front = children(script.pid)[0]
        pid = children(front)[0] if victim == "supervisor" else front
        os.kill(pid, signal.SIGTERM if victim == "sigterm" else signal.SIGKILL)
    script.wait(timeout=15)
    assert wait_until(lambda: not processes(marker)), processes(marker)


def test_a_process_that_a_job_leaves_behind_is_ended(tmp_path):
    marker = f"7000.{time.time_ns()}"
    assert run("a.log", "bash", "-c", f"sleep {marker} & true", cwd=tmp_path).returncode == 0
    assert processes(marker) == []


def test_ctrl_c_ends_the_script_that_waits(tmp_path):
    """run.py dies of the signal itself, or the shell would go on with its next command."""
    script = subprocess.Popen(
        ["bash", "-c", f"{' '.join(RUN)} {tmp_path}/a.log sleep 60; echo went on"],
        start_new_session=True,
        preexec_fn=foreground,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert wait_until(lambda: (tmp_path / "a.log").exists())
    os.killpg(script.pid, signal.SIGINT)
    output, _ = script.communicate(timeout=15)
    assert output == ""
    assert script.returncode == -signal.SIGINT


def test_ctrl_z_and_fg_change_nothing(tmp_path):
    """Python reports a wait that was stopped for longer than its timeout as any signal number."""
    script = subprocess.Popen(
        [*RUN, "a.log", "sleep", "3"], cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE
    )
    assert wait_until(lambda: (tmp_path / "a.log").exists())
    os.kill(script.pid, signal.SIGSTOP)
    time.sleep(1.2)
    os.kill(script.pid, signal.SIGCONT)
    _, errors = script.communicate(timeout=15)
    assert errors == b""
    assert script.returncode == 0
