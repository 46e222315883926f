"""utils/slurm.py: translation of options; jobs on a private one-node Slurm, if installed."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

UTILS = Path(__file__).parents[2] / "utils"
SLURM = [sys.executable, str(UTILS / "slurm.py")]

KALDI_RULES = """
# as in Kaldi's conf/slurm.conf
command sbatch --export=PATH
option time=* --time $0
option mem=* --mem-per-cpu $0
option mem=0          # nothing to add
default gpu=0
option gpu=0 -p shared
option gpu=* -p gpu --gres=gpu:$0 --comment '$0 cards' # of any kind
"""


@pytest.fixture
def slurm(monkeypatch):
    monkeypatch.syspath_prepend(str(UTILS))
    import slurm

    return slurm


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "-p shared"),
        ({"mem": "4G", "max_jobs_run": "3", "progress": "x"}, "--mem-per-cpu 4G -p shared"),
        ({"mem": "0", "gpu": "2"}, "-p gpu --gres=gpu:2 --comment 2_cards"),
        ({"time": "1; rm -rf /"}, "--time 1;_rm_-rf_/ -p shared"),
    ],
)
def test_options_become_arguments_of_sbatch(slurm, options, expected):
    command = slurm.sbatch_command(options, KALDI_RULES, "slurm.conf")
    arguments = [argument.replace(" ", "_") for argument in command]
    assert " ".join(arguments) == f"sbatch --export=PATH {expected}"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("command sbatch\noption foo", "cannot understand the line 'option foo' in slurm.conf"),
        ("option mem=* --mem $0", "no line 'command sbatch ...' in slurm.conf"),
        ("command sbatch", "option --mem 4G has no rule in slurm.conf; add a line 'option mem=* "),
    ],
)
def test_faults_of_the_configuration(slurm, rules, message):
    with pytest.raises(slurm.UsageError) as caught:
        slurm.sbatch_command({"mem": "4G"}, rules, "slurm.conf")
    assert str(caught.value).startswith(message)


def test_without_slurm_the_remedy_is_named(tmp_path):
    result = subprocess.run(
        [*SLURM, "a.log", "true"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: slurm.py: sbatch: No such file or directory; submit")
    assert list(tmp_path.iterdir()) == []


SITE = """
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPort={first_port}
SlurmdPort={second_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 RealMemory=500 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Environment in which Slurm's commands reach a cluster of this machine alone."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    programs = [shutil.which(name, path=path) for name in ("slurmctld", "slurmd", "sbatch")]
    if None in programs:
        pytest.skip("Slurm is not installed (Debian: apt-get install slurm-wlm)")
    folder = tmp_path_factory.mktemp("cluster")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = free_ports(2)
    site = folder / "slurm.conf"
    site.write_text(
        SITE.format(
            host=socket.gethostname(),
            user=getpass.getuser(),
            folder=folder,
            first_port=ports[0],
            second_port=ports[1],
        )
    )
    environment = {**os.environ, "SLURM_CONF": str(site)}
    daemons = []
    try:
        for program, options in zip(programs[:2], (["-D", "-c"], ["-D"]), strict=True):
            with open(folder / f"{Path(program).name}.log", "wb") as log:
                daemons.append(
                    subprocess.Popen([program, *options], env=environment, stdout=log, stderr=log)
                )
        end = time.monotonic() + 20
        while "idle" not in query(environment, "sinfo", "-h", "-o", "%T"):
            if time.monotonic() > end:
                pytest.skip(f"the private cluster does not start here; see {folder}")
            time.sleep(0.5)
        yield environment
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(timeout=20)


def query(environment, *command):
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return result.stdout


def submit(cluster, cwd, *arguments, **options):
    return subprocess.Popen(
        [*SLURM, *arguments], cwd=cwd, env=cluster, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.slow
def test_one_job(cluster, tmp_path):
    (tmp_path / "path.sh").write_text("export FROM_PATH_SH=1\n")
    script = 'echo "a  b $FROM_PATH_SH <$CUDA_VISIBLE_DEVICES> $OMP_NUM_THREADS"'
    options = ["--mem", "100M", "--gpu", "0", "--num-threads", "1", "--time", "0:10"]
    process = submit(cluster, tmp_path, *options, "log/a.log", "bash", "-c", script)
    assert process.communicate(timeout=60) == (None, "")
    assert process.returncode == 0
    log = (tmp_path / "log" / "a.log").read_text()
    assert "\na  b 1 <> 1\n" in log
    assert "\n# Ended (code 0) at " in log
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["a.log"]


@pytest.mark.slow
def test_failure_in_an_array(cluster, tmp_path):
    process = submit(
        cluster, tmp_path, "--max-jobs-run", "2", "JOB=1:3", "a.JOB.log", "bash", "-c",
        "echo number JOB; [ JOB != 2 ]",
    )  # fmt: skip
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert errors.splitlines() == [
        "slurm.py: 1 / 3 failed, logs are in a.*.log",
        "slurm.py: first failure (code 1): a.2.log",
        "slurm.py: last lines of a.2.log:",
        "  | number 2",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["script", "group"])
def test_jobs_are_cancelled_with_their_script(cluster, tmp_path, victim):
    command = f"{' '.join(SLURM)} JOB=1:2 {tmp_path}/a.JOB.log sleep 600; true"
    script = subprocess.Popen(["bash", "-c", command], env=cluster, start_new_session=True)
    end = time.monotonic() + 30
    while "RUNNING" not in query(cluster, "squeue", "-h", "-o", "%T"):
        assert time.monotonic() < end
        time.sleep(0.2)
    if victim == "group":
        os.killpg(script.pid, 9)
    else:
        script.kill()
    script.wait()
    end = time.monotonic() + 30
    while query(cluster, "squeue", "-h") or (tmp_path / "q").exists():
        assert time.monotonic() < end
        time.sleep(0.2)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.1.log", "a.2.log"}


@pytest.mark.slow
def test_a_job_that_slurm_ends_is_a_failure(cluster, tmp_path):
    process = submit(cluster, tmp_path, "a.log", "sleep", "600")
    end = time.monotonic() + 30
    while not (tmp_path / "a.log").exists():
        assert time.monotonic() < end
        time.sleep(0.2)
    query(cluster, "scancel", "--name", "a.log")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "slurm.py: Slurm ended task 1 of its job" in errors
    assert "CANCELLED" in errors


@pytest.mark.slow
def test_refused_by_slurm(cluster, tmp_path):
    process = submit(cluster, tmp_path, "--partition", "none", "a.log", "true")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "invalid partition specified: none" in errors
    assert errors.count("\n") == 1
