"""Work in processes: order, errors, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from espnet2_sepx.errors import UserError
from espnet2_sepx.parallel import map_in_processes


def double(number):
    return 2 * number


def threads_and_pid(_):
    return os.environ["OMP_NUM_THREADS"], os.getpid()


def fail_at_three(number):
    if number == 3:
        raise UserError("three: expected another number; try four")
    return number


def die_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("nj", [1, 2])
def test_results_come_in_order(nj):
    assert list(map_in_processes(double, range(7), nj)) == [0, 2, 4, 6, 8, 10, 12]


def test_children_have_one_thread_and_the_environment_is_restored(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    results = list(map_in_processes(threads_and_pid, range(4), nj=2))
    assert {threads for threads, _ in results} == {"1"}
    assert os.getpid() not in {pid for _, pid in results}
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("nj", [1, 2])
def test_errors_reach_the_caller(nj):
    with pytest.raises(UserError, match="try four"):
        list(map_in_processes(fail_at_three, range(8), nj))


def test_a_dead_worker_is_told():
    with pytest.raises(UserError, match="a worker process died"):
        list(map_in_processes(die_at_three, range(8), nj=2))


def test_a_bad_number_of_processes_is_refused():
    with pytest.raises(ValueError, match="nj must be at least 1, got 0"):
        list(map_in_processes(double, [1], nj=0))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from espnet2_sepx.parallel import map_in_processes\n"
        "def work(number):\n"
        "    time.sleep(0.05)\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    for pid in map_in_processes(work, range(10000), 2):\n"
        "        print(pid, flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    workers = {int(parent.stdout.readline()) for _ in range(10)}
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
